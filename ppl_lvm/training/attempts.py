"""Computations after training, whose failure does not lose the run."""

from collections.abc import Callable
from typing import TypeVar

from ppl_lvm.core.messages import reason_of

T = TypeVar("T")


class Attempts:
    """Computes results of a trained pair; one that fails has a reason in place of a value.

    Attributes:
        reasons: name of a result -> why it was not computed.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def __call__(self, name: str, compute: Callable[[], T]) -> T | None:
        """The value of `compute()`; None if it raises, with the first reason under `name`."""
        try:
            return compute()
        except Exception as error:  # of the user's programs too: the training is done
            self.reasons.setdefault(name, reason_of(error))
            return None
