"""Densities to fit to: each a distribution of a row (P,), with more hills than a family has.

ppl-lvm divergences bimodal
"""

import torch
from pyro.distributions import Categorical, MixtureSameFamily, Normal

__all__ = ["bimodal", "four_modes"]


def bimodal() -> MixtureSameFamily:
    """Unequal hills at -2.5 and 2: event (1,)."""
    hills = Normal(torch.tensor([[-2.5], [2.0]]), torch.tensor([[0.6], [0.9]])).to_event(1)
    return MixtureSameFamily(Categorical(torch.tensor([0.35, 0.65])), hills)


def four_modes() -> MixtureSameFamily:
    """Hills at the corners of a square, one of them larger: event (2,)."""
    corners = torch.tensor([[-2.0, -2.0], [-2.0, 2.0], [2.0, -2.0], [2.0, 2.0]])
    hills = Normal(corners, torch.full((4, 2), 0.5)).to_event(1)
    return MixtureSameFamily(Categorical(torch.tensor([0.2, 0.2, 0.2, 0.4])), hills)
