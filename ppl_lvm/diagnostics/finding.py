"""One row of the table that answers "can this fit be trusted?"."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Verdict = Literal["good", "warning", "bad", "unknown"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
PROJECT_DEFAULT = "project default"
# p-values below which a test says "warning" and "bad". A table has some seven tests: at 1 in 200
# each, about one table in thirty gives a false alarm.
LOOK, BAD = 0.005, 0.001


@dataclass(frozen=True)
class Finding:
    """A figure, what it is uncertain by, and what follows from it.

    Attributes:
        question: the question of the issue that it belongs to, "Has it converged?".
        name: what was measured, with its unit.
        value: the figure; None where there is none.
        error: its standard error; None where it has none (an exact figure).
        threshold: when it is good and when it is bad, in words.
        source: where the threshold comes from.
        verdict: "good", "warning", "bad" or "unknown".
        why: one sentence on this figure.
        remedy: what to do; empty where nothing is to be done.
    """

    question: str
    name: str
    value: float | None
    error: float | None
    threshold: str
    source: str
    verdict: Verdict
    why: str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not finite becomes None."""
        row = asdict(self)
        for key in ("value", "error"):
            if row[key] is not None and not math.isfinite(row[key]):
                row[key] = None
        return row

    @property
    def figure(self) -> str:
        """The value with its error, as a person reads it."""
        if self.value is None:
            return "–"
        if self.error is None or not math.isfinite(self.error):
            return f"{self.value:.4g}"
        digits = 3 if self.error == 0 else max(0, min(6, 1 - math.floor(math.log10(self.error))))
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}"


def graded(value: float, good: float, bad: float) -> Verdict:
    """The verdict on a figure that is the better the smaller: up to `good`, above `bad`."""
    if math.isnan(value):
        return "unknown"
    if value <= good:
        return "good"
    return "warning" if value <= bad else "bad"


def cannot_say(question: str, name: str, why: str, remedy: str = "") -> Finding:
    """A row without a figure."""
    return Finding(question, name, None, None, "", "", "unknown", why, remedy)
