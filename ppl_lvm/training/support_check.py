"""Test of observed values against supports, as tensor operations.

Pyro tests supports in `log_prob` when validation is on and the program runs. A captured step does
not run the program, and many likelihoods give a finite density outside their support (a Poisson
at 0.5). As tensor operations the test is captured with the step.
"""

from typing import Any

import torch
from pyro.distributions import MaskedDistribution, MaskedMixture
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from ppl_lvm.core.distributions import layers, unwrap


class SupportCheck(Messenger):
    """Handler that collects one test result () per observed site.

    Values that a mask hides are not tested, nor are distributions with `validate_args=False`.
    These are recognized only while validation is on, so run the program once with it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._results: list[Tensor] = []
        self._exempt_sites: set[str] = set()

    def clear(self) -> None:
        """Remove the results of the last step."""
        self._results.clear()

    def all(self) -> Tensor | None:
        """True () if every value was in its support; None if no site was tested."""
        return torch.stack(self._results).all() if self._results else None

    def _pyro_post_sample(self, msg: Any) -> None:
        fn, value, mask = msg["fn"], msg["value"], msg["mask"]
        if not msg["is_observed"] or mask is False or not isinstance(value, Tensor):
            return
        if site_is_subsample(msg) or site_is_factor(msg):
            return
        if Distribution._validate_args and not all(part._validate_args for part in layers(fn)):
            self._exempt_sites.add(msg["name"])
        if msg["name"] in self._exempt_sites:
            return
        try:
            supported = _supported(fn, value.detach())
        except NotImplementedError:
            return
        if isinstance(mask, Tensor):
            supported = supported | ~mask
        self._results.append(supported.detach().all())


def _supported(fn: Any, value: Tensor) -> Tensor:
    """True for each value in its support or masked, in the shape of the log-density."""
    if isinstance(fn, MaskedDistribution):
        supported, mask = _supported(fn.base_dist, value), fn._mask
        return supported | ~mask if isinstance(mask, Tensor) else supported | (not mask)
    if isinstance(fn, torch.distributions.Independent):
        inner = _supported(fn.base_dist, value)
        n = fn.reinterpreted_batch_ndims
        return inner.flatten(inner.dim() - n).all(-1) if n else inner
    if isinstance(unwrap(fn), MaskedMixture):  # its constraint does not broadcast
        value = value.expand(torch.broadcast_shapes(value.shape, fn.shape()))
    result: Tensor = fn.support.check(value)
    return result
