"""Multimodal example densities, distributions of a row (P,).

ppl-lvm divergences bimodal
"""

import torch
from pyro.distributions import Categorical, MixtureSameFamily, Normal

__all__ = ["bimodal", "four_modes"]


def bimodal() -> MixtureSameFamily:
    """Two unequal modes at -2.5 and 2: event shape (1,)."""
    modes = Normal(torch.tensor([[-2.5], [2.0]]), torch.tensor([[0.6], [0.9]])).to_event(1)
    return MixtureSameFamily(Categorical(torch.tensor([0.35, 0.65])), modes)


def four_modes() -> MixtureSameFamily:
    """Modes at the corners of a square, one of them larger: event shape (2,)."""
    corners = torch.tensor([[-2.0, -2.0], [-2.0, 2.0], [2.0, -2.0], [2.0, 2.0]])
    modes = Normal(corners, torch.full((4, 2), 0.5)).to_event(1)
    return MixtureSameFamily(Categorical(torch.tensor([0.2, 0.2, 0.2, 0.4])), modes)
