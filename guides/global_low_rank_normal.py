"""Low-rank normal guide of many global latents.

    q(z) = T(N(m, A Aᵀ)),    A = S (I + W diag(c) Wᵀ),    T the bijections onto the supports,

over one vector of all D unconstrained values, with S diagonal and W (D, r). A direction is
stretched (c > 0) or shrunk (c < 0). A step takes D r operations, so that it serves many thousands.
`fit(model, None, data)` sets it without gradient steps where a model has more than 500 global
latents and no others.

Determinant and inverse are those of r × r matrices:

    |I + W diag(c) Wᵀ| = |I + diag(c) Wᵀ W|,
    (I + W diag(c) Wᵀ)⁻¹ = I − W (I + diag(c) Wᵀ W)⁻¹ diag(c) Wᵀ
"""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoContinuous
from pyro.nn import PyroParam
from torch import Tensor, nn
from torch.distributions import Transform

from ppl_lvm.authoring import dry_run
from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.guides.global_multivariate_normal import GlobalMultivariateNormal, origin
from ppl_lvm.guides.parts.site_guide import Latents, serving


@serving(Latents.GLOBAL_CONTINUOUS, description="a normal with a few directions")
class GlobalLowRankNormal(AutoContinuous):
    """q over all continuous latents of a model, with correlations along `rank` directions.

    Args:
        model: the model.
        batch: its arguments.
        rank: r.
        scale: initial standard deviation of the unconstrained values, which start at 0.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *batch: Any,
        rank: Count = 64,
        scale: Positive = 0.1,
    ) -> None:
        super().__init__(model, init_loc_fn=origin)
        self._rank, self._initial_scale = rank, scale
        with dry_run(model), torch.no_grad():  # the trace that it keeps can be copied
            self(*batch)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        loc = self._init_loc()
        rank = min(self._rank, self.latent_dim)
        directions = torch.eye(self.latent_dim)[:, :rank].to(loc)
        self.loc = nn.Parameter(loc)
        self.scale = PyroParam(torch.full_like(loc, self._initial_scale), constraints.positive)
        self.directions = nn.Parameter(directions)
        self.stretch = nn.Parameter(loc.new_zeros(rank))

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """N(m, A Aᵀ)."""
        standard = dist.Normal(torch.zeros_like(self.loc), 1.0).to_event(1)
        transform = _Stretch(self.loc, self.scale, self.directions, self.stretch)
        return dist.TransformedDistribution(standard, [transform])

    def set_normal(self, loc: Tensor, scale: Tensor, basis: Tensor, stretch: Tensor) -> None:
        """Set m (D,), S (D,), and orthonormal directions (D, r') with their factors (r',)."""
        rank = len(self.stretch)
        leading = (stretch - 1).abs().topk(min(rank, len(stretch))).indices
        with torch.no_grad():
            self.loc.copy_(loc)
            self.directions[:, : len(leading)] = basis[:, leading].to(self.loc)
            self.stretch.zero_()
            self.stretch[: len(leading)] = (stretch[leading] - 1).to(self.loc)
        self.scale = scale.to(self.loc)

    auxiliary_draws = GlobalMultivariateNormal.auxiliary_draws


class _Stretch(Transform):
    """v -> m + S (v + W diag(c) Wᵀ v), on the last dimension."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, loc: Tensor, scale: Tensor, W: Tensor, c: Tensor) -> None:
        super().__init__(cache_size=1)
        self._loc, self._scale, self._W, self._c = loc, scale, W, c

    def _call(self, v: Tensor) -> Tensor:
        return self._loc + self._scale * (v + (v @ self._W * self._c) @ self._W.T)

    def _inverse(self, u: Tensor) -> Tensor:
        v = (u - self._loc) / self._scale
        weights = torch.linalg.solve(self._small, (v @ self._W * self._c).unsqueeze(-1))
        return v - weights.squeeze(-1) @ self._W.T

    @property
    def _small(self) -> Tensor:
        """I + diag(c) Wᵀ W (r, r)."""
        return torch.eye(len(self._c)).to(self._c) + self._c.unsqueeze(1) * (self._W.T @ self._W)

    def log_abs_det_jacobian(self, v: Tensor, u: Tensor) -> Tensor:
        total = self._scale.log().sum() + torch.linalg.slogdet(self._small).logabsdet
        return total.expand(v.shape[:-1])
