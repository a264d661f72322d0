"""Full-rank normal guide of all latents outside of enumeration.

    q(z) = T(N(m, S Sᵀ)),    T the bijections onto the supports,

over one vector of all unconstrained values, with every correlation. A step takes D² operations for
D values, so that it serves up to a few hundred. `fit(model, None, data)` sets m and S S^T without
gradient steps where a model has global latents only.

It is Pyro's AutoMultivariateNormal with initial values that need no draw from the prior, so that
priors may be improper.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor
from torch.distributions import biject_to

from ppl_lvm.authoring import dry_run
from ppl_lvm.core.validate import Positive
from ppl_lvm.guides.parts.site_guide import Latents, serving


@serving(Latents.GLOBAL_CONTINUOUS, description="a full-rank normal")
class GlobalMultivariateNormal(AutoMultivariateNormal):
    """q over all continuous latents of a model, with a full covariance.

    Args:
        model: the model.
        batch: its arguments.
        scale: initial standard deviation of the unconstrained values, which start at 0.
    """

    def __init__(self, model: Callable[..., Any], *batch: Any, scale: Positive = 0.1) -> None:
        super().__init__(model, init_loc_fn=origin, init_scale=scale)
        with dry_run(model), torch.no_grad():  # the trace that it keeps can be copied
            self(*batch)

    def set_normal(self, loc: Tensor, scale_tril: Tensor) -> None:
        """Set m (D,) and the Cholesky factor S (D, D), in the order of the model's sites."""
        scale = scale_tril.diagonal()
        with torch.no_grad():
            self.loc.copy_(loc)
        self.scale = scale.to(self.loc)
        self.scale_tril = (scale_tril / scale.unsqueeze(1)).to(self.loc)

    def auxiliary_draws(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The guide's auxiliary site (S, D) at draws of the latents, site -> (S, …)."""
        parts = []
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            value = values[name]
            parts.append(biject_to(site["fn"].support).inv(value).reshape(len(value), -1))
        return {f"_{self._pyro_name}_latent": torch.cat(parts, -1)}


def origin(site: Any) -> Tensor:
    """The value whose unconstrained coordinates are 0."""
    transform = biject_to(site["fn"].support)
    value: Tensor = transform(torch.zeros(transform.inverse_shape(site["fn"].shape())))
    return value
