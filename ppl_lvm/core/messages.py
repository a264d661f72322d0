"""Parts of error messages: suggestions for misspelled words, and lists of what is available."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Suggestion of the choice closest to `word`, an empty string if none is close.

    >>> did_you_mean("optimiser", ["optimizer", "schedule"])
    ' Did you mean optimizer?'
    """
    choices = list(choices)
    lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), lower, 1)
    return f" Did you mean {lower[close[0]]}?" if close else ""


def unknown(kind: str, word: str, choices: Iterable[str]) -> str:
    """Message for an unknown name: what it is, what is available, and the closest choice.

    >>> unknown("verdict", "god", ["good", "bad"])
    "Unknown verdict 'god'. Available: bad, good. Did you mean good?"
    """
    choices = sorted(choices)
    return f"Unknown {kind} {word!r}. Available: {', '.join(choices)}.{did_you_mean(word, choices)}"
