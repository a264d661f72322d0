"""Errors that users may want to catch."""

from typing import Literal


class ArgumentError(ValueError, TypeError):
    """An argument of the wrong type, out of its range, or unknown to the function."""


class CannotSayError(ValueError):
    """A diagnostic that cannot be computed for this fit.

    Args:
        remedy: how to make it computable; empty if there is no remedy.
        verdict: "exact" where there is nothing to estimate, "not applicable" where the fit has
            nothing that the diagnostic is about, else "unknown".
    """

    def __init__(
        self,
        why: str,
        remedy: str = "",
        verdict: Literal["exact", "not applicable", "unknown"] = "unknown",
    ) -> None:
        super().__init__(why)
        self.remedy, self.verdict = remedy, verdict


class CannotCaptureError(ValueError):
    """A program cannot run captured or compiled.

    Attributes:
        reason: without the source line.
        where: `file:line` in the user's program, None if unknown.
    """

    def __init__(self, reason: str, where: str | None = None) -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason = reason
        self.where = where


def is_numerical(error: Exception) -> bool:
    """True for an error that a diverged parameter may raise, in a factorization or a draw."""
    signs = ("linalg.", "probability tensor contains")
    return isinstance(error, ValueError) or any(sign in str(error) for sign in signs)


class NonFiniteError(ValueError):
    """A loss, a gradient or a parameter is NaN or infinite; the step has not been taken."""


class DamagedFileError(ValueError):
    """A file of a run directory has changed since it was written, or is cut short."""


class DataFileError(ValueError):
    """A file of rows cannot be read, or has changed since it was opened."""


class WriteError(OSError):
    """A file cannot be written: no room, a limit, no permission, or no directory."""

    def __str__(self) -> str:
        return str(self.args[-1])
