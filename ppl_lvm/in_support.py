"""Do the observed values lie where their distributions say they must? Asked without Python.

Pyro asks in `log_prob`, when validation is on and the program runs. A captured step does not run
it, and many a likelihood gives a finite number for a value that it has no probability for (a
Poisson for 0.5). So the question is put as tensor operations, which are captured with the rest.
"""

from collections.abc import Iterator
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor


class InSupport(Messenger):
    """Collects the answers, one a site; distributions made with `validate_args=False` are not
    asked, nor are values that a mask hides.
    """

    def __init__(self) -> None:
        super().__init__()
        self._answers: list[Tensor] = []

    def clear(self) -> None:
        """Forget the answers of the last step."""
        self._answers.clear()

    def all(self) -> Tensor | None:
        """Whether every value was in its support (); None if nobody was asked."""
        return torch.stack(self._answers).all() if self._answers else None

    def _pyro_post_sample(self, msg: Any) -> None:
        fn, value, mask = msg["fn"], msg["value"], msg["mask"]
        if not msg["is_observed"] or mask is False or not isinstance(value, Tensor):
            return
        if type(fn).__name__ in ("_Subsample", "Unit", "Delta"):
            return
        if any(vars(part).get("_validate_args") is False for part in _layers(fn)):
            return
        try:
            inside = fn.support.check(value.detach())
        except NotImplementedError:
            return
        for hidden in [mask, *(vars(part).get("_mask") for part in _layers(fn))]:
            if isinstance(hidden, Tensor):
                inside = inside | ~hidden
        self._answers.append(inside.detach().all())


def _layers(fn: Any) -> Iterator[Any]:
    """A distribution and those inside it."""
    while fn is not None:
        yield fn
        fn = vars(fn).get("base_dist")
