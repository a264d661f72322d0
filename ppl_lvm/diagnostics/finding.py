"""Findings, thresholds and verdicts of the diagnostics."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Verdict = Literal["good", "warning", "bad", "unknown", "exact", "not applicable"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
PROJECT_DEFAULT = "project default"
VECTORIZE = "Index dimensions from the right (-1, -2), so that draws can be a plate on the left."
POINT = "Use a guide with a density, or judge the model by rows held out."


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of a diagnosis.

    Attributes:
        question: the question that the row belongs to, "Has it converged?".
        name: the measured quantity, with its unit.
        value: None where it could not be computed.
        error: its standard error; None for an exact value.
        threshold: limits of good and bad, as text.
        source: origin of the limits.
        verdict: "good", "warning", "bad"; without a graded value "exact" (nothing is estimated),
            "not applicable", or "unknown" (the remedy makes it known).
        why: one sentence on this value, or the reason why it is missing.
        remedy: empty where no action is needed.
        slug: key of its diagnostic; empty outside of a diagnosis.
    """

    question: str
    name: str
    value: float | None = None
    error: float | None = None
    threshold: str = ""
    source: str = ""
    verdict: Verdict = "unknown"
    why: str = ""
    remedy: str = ""
    slug: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; values that are not finite become None."""
        row = asdict(self)
        for key in ("value", "error"):
            if row[key] is not None and not math.isfinite(row[key]):
                row[key] = None
        return row

    @property
    def formatted(self) -> str:
        """The value with its error, "1.235 ± 0.012"."""
        return format_with_error(self.value, self.error)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Limits between good, warning and bad values.

    Attributes:
        good: the last good value.
        bad: values beyond it are bad.
        source: origin of the limits.
        larger_is_better: by default small values are good.
        errors: standard errors that a value may lie beyond a limit.
        text: the limits in words; by default made from the two values.
    """

    good: float
    bad: float
    source: str = PROJECT_DEFAULT
    larger_is_better: bool = False
    errors: float = 0.0
    text: str = ""

    def __str__(self) -> str:
        within, beyond = ("≥", "<") if self.larger_is_better else ("≤", ">")
        slack = f", both ± {self.errors:g} standard errors" if self.errors else ""
        return self.text or f"good {within} {self.good:g}, bad {beyond} {self.bad:g}{slack}"

    def grade(self, value: float) -> Verdict:
        """The verdict on a value; "unknown" for NaN.

        >>> Threshold(good=0.1, bad=1.0).grade(0.5)
        'warning'
        """
        if math.isnan(value):
            return "unknown"
        sign = -1 if self.larger_is_better else 1
        if sign * value <= sign * self.good:
            return "good"
        return "warning" if sign * value <= sign * self.bad else "bad"

    def finding(
        self,
        question: str,
        name: str,
        value: float,
        error: float | None = None,
        *,
        why: str,
        remedy: str,
        graded: float | None = None,
        verdict: Verdict | None = None,
    ) -> Finding:
        """The row of a value.

        Args:
            remedy: left out of a good row.
            graded: the value to grade, if it is not `value` within its errors.
            verdict: replaces the grade.
        """
        if verdict is None:
            slack = self.errors * (error if error and math.isfinite(error) else 0.0)
            within = value + slack if self.larger_is_better else value - slack
            verdict = self.grade(within if graded is None else graded)
        return Finding(
            question=question,
            name=name,
            value=value,
            error=error,
            threshold=str(self),
            source=self.source,
            verdict=verdict,
            why=why,
            remedy="" if verdict == "good" else remedy,
        )


# A table has about seven tests: at 1 in 200 each, one table in thirty has a false positive.
P_VALUE = Threshold(good=0.005, bad=0.001, larger_is_better=True)


def format_with_error(value: float | None, error: float | None) -> str:
    """A value with as many digits as its standard error allows.

    >>> format_with_error(1.23456, 0.0123)
    '1.235 ± 0.012'
    """
    if value is None:
        return "–"
    if error is None or not math.isfinite(error) or not math.isfinite(value):
        return f"{value:.4g}"
    digits = 3 if error == 0 else max(0, min(6, 1 - math.floor(math.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"
