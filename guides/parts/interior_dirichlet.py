"""Dirichlet whose draws have densities with finite gradients."""

import torch
from pyro.distributions import Dirichlet
from torch import Size, Tensor


class InteriorDirichlet(Dirichlet):
    """Dirichlet(c) with draws of at least tiny^(3/4): 3e-29 in float32, 3e-231 in float64.

    Half of the draws at c = 0.01 are smaller than 1e-30. Rounding puts them on the boundary, where
    log p(x | z) can have a derivative that overflows, so that its product with ∂z/∂c is NaN. A
    draw at the floor does not move with c.
    """

    def rsample(self, sample_shape: Size | tuple[int, ...] = ()) -> Tensor:
        draws: Tensor = super().rsample(Size(sample_shape))
        return draws.clamp(min=torch.finfo(draws.dtype).tiny ** 0.75)
