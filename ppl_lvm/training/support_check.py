"""Do the observed values lie where their distributions say they must? Asked without Python.

Pyro asks in `log_prob`, when validation is on and the program runs. A captured step does not run
it, and many a likelihood gives a finite number for a value that it has no probability for (a
Poisson for 0.5). So the question is put as tensor operations, which are captured with the rest.
"""

from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from ppl_lvm.core.distributions import layers


class SupportCheck(Messenger):
    """Collects the answers, one a site.

    Distributions made with `validate_args=False` are not asked (which these are is seen when the
    program runs with validation on, so let it once), nor are values that a mask hides.
    """

    def __init__(self) -> None:
        super().__init__()
        self._answers: list[Tensor] = []
        self._unasked: set[str] = set()

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
        if site_is_subsample(msg) or site_is_factor(msg):
            return
        if Distribution._validate_args and not all(part._validate_args for part in layers(fn)):
            self._unasked.add(msg["name"])
        if msg["name"] in self._unasked:
            return
        try:
            inside = _inside(fn, value.detach())
        except NotImplementedError:
            return
        if isinstance(mask, Tensor):
            inside = inside | ~mask
        self._answers.append(inside.detach().all())


def _inside(fn: Any, value: Tensor) -> Tensor:
    """Whether each value is in its support or masked, in the shape of the log-density."""
    if isinstance(fn, MaskedDistribution):
        inside, shown = _inside(fn.base_dist, value), fn._mask
        return inside | ~shown if isinstance(shown, Tensor) else inside | (not shown)
    if isinstance(fn, torch.distributions.Independent):
        inner = _inside(fn.base_dist, value)
        n = fn.reinterpreted_batch_ndims
        return inner.flatten(inner.dim() - n).all(-1) if n else inner
    checked: Tensor = fn.support.check(value)
    return checked
