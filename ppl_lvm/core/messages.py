"""Error messages: suggestions for misspelled words, lists of choices."""

import codecs
import difflib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

from ppl_lvm.core.errors import WriteError

# Argument of Python -> option of the command that runs.
_options: ContextVar[Mapping[str, str]] = ContextVar("_options", default=MappingProxyType({}))
_shown: ContextVar[set[str] | None] = ContextVar("_shown", default=None)


@contextmanager
def warnings_once() -> Iterator[None]:
    """A scope, of one fit, in which `warn_once` shows each text once."""
    token = _shown.set(set() if _shown.get() is None else _shown.get())
    try:
        yield
    finally:
        _shown.reset(token)


def warn_once(text: str) -> None:
    """Warn, at one place for all callers; once where a scope of `warnings_once` is open."""
    shown = _shown.get()
    if shown is not None and text in shown:
        return
    if shown is not None:
        shown.add(text)
    warnings.warn(text, stacklevel=1)


# Characters of tables and messages that an encoding may lack, in ASCII.
ASCII = (
    dict.fromkeys("−–—‐─━", "-")
    | dict.fromkeys("│┃", "|")
    | dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼", "+")
    | {"≤": "<=", "≥": ">=", "…": "...", "±": "+-", "→": "->", "∞": "inf", "×": "x", "·": "*"}
    | {"χ": "chi", "²": "2", "\u0302": "^", "‖": "||", "∈": "in", "’": "'", "Σ": "sum"}
)


def ascii_fallback(error: UnicodeError) -> tuple[str, int]:
    """Handler of `codecs` for streams: ASCII in place of characters that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(ASCII.get(c, "?") for c in text), error.end


codecs.register_error("ppl_lvm.ascii", ascii_fallback)


@contextmanager
def options_in_messages(options: Mapping[str, str]) -> Iterator[None]:
    """A scope of the command line: messages name options in place of arguments."""
    token = _options.set(options)
    try:
        yield
    finally:
        _options.reset(token)


def for_caller(text: str) -> str:
    """A message with the options of the command that runs; unchanged in Python.

    "num_steps" becomes "--num-steps", "refits=100" "--refits 100", and the object "patience:" of a
    message "--patience:". Arguments in call syntax, IWAE(num_particles=5), stay.
    """
    options = _options.get()
    if not options:
        return text

    def option(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        before = text[: match.start()]
        is_called = re.search(r"\w\([^()]*$", before) is not None
        is_object = match.start() == 0 and text[match.end() :].startswith(":")
        in_brackets = before.endswith("(") and text[match.end() :].startswith(")")
        if is_called or not ("_" in name or value or is_object or in_brackets):
            return match.group()
        shown = options[name]
        if value in (None, "", "=True"):
            return shown
        shown_value = value[1:]
        if shown_value.startswith("("):  # 8 8 for (8, 8)
            shown_value = re.sub(r"[(),]", "", shown_value)
        return f"{shown} {shown_value}"

    names = "|".join(sorted(map(re.escape, options), key=len, reverse=True))
    value = r"(?P<value>=(?:\([\d.]+(?:, [\d.]+)*\)|'[^']*'|\"[^\"]*\"|[\w.+\-]*\w)?)?"
    pattern = rf"(?<![\w.\-'\"/\[=])(?P<name>{names}){value}(?![\w(\[]|\.\w|-\w)"
    return re.sub(pattern, option, text)


# All but tab and newline, marks that turn the direction of what follows, and halves of pairs.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Text of a stranger for a terminal: control characters as escapes.

    >>> printable("\x1b[2Jname")
    '\\x1b[2Jname'
    """
    return _CONTROL.sub(lambda match: ascii(match.group())[1:-1], text)


def closest(word: str, choices: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The choice most similar to `word` without regard to case, None if none is similar."""
    lower = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(word.lower(), lower, 1, cutoff)
    return lower[matches[0]] if matches else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Suggestion of the choice closest to `word`, an empty string if none is close.

    >>> did_you_mean("optimiser", ["optimizer", "schedule"])
    ' Did you mean optimizer?'
    """
    match = closest(word, choices)
    return f" Did you mean {match}?" if match else ""


def unknown(kind: str, word: str, choices: Iterable[str]) -> str:
    """Message for an unknown name: what it is, what is available, and the closest choice.

    >>> unknown("verdict", "god", ["good", "bad"])
    "Unknown verdict 'god'. Available: bad, good. Did you mean good?"
    """
    choices = sorted(choices)
    return f"Unknown {kind} {word!r}. Available: {', '.join(choices)}.{did_you_mean(word, choices)}"


def reason_of(error: BaseException) -> str:
    """First line of an error, with its type unless its message is for users.

    >>> reason_of(ValueError("no rows")), reason_of(KeyError("z"))
    ('no rows', "KeyError: 'z'")
    """
    line = next(iter(str(error).splitlines()), "")
    if line and isinstance(error, ValueError | WriteError):
        return line
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def nats(value: float | None, unit: str = "") -> str:
    """A result with its unit; words where it was not computed.

    >>> nats(-1.5), nats(-1.5, " nats per row"), nats(None, " nats per row")
    ('-1.5000', '-1.5000 nats per row', 'not computed')
    """
    return "not computed" if value is None else f"{value:.4f}{unit}"
