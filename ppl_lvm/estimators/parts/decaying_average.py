"""Bias-corrected decaying average, stored as buffers.

    a ← β a + (1 - β) m,   n ← β n + (1 - β),   average = a / n

Division by n corrects for the initial value zero. Before the first step the average is 0.
"""

import torch
from torch import Tensor, nn


class DecayingAverage(nn.Module):
    """Decaying average of scalars; call `add` after use."""

    total: Tensor
    weight: Tensor

    def __init__(self, beta: float) -> None:
        super().__init__()
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"A decaying average needs 0 <= beta < 1, got beta={beta}.")
        self.beta = beta
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    def forward(self) -> Tensor:
        """The current average, a scalar tensor."""
        tiny = torch.finfo(self.weight.dtype).tiny
        return (self.total / self.weight.clamp_min(tiny)).to(torch.get_default_dtype())

    @torch.no_grad()
    def add(self, value: Tensor) -> None:
        """Update the average with the mean of `value` (any shape)."""
        self.total.mul_(self.beta).add_((1 - self.beta) * value.mean().to(self.total))
        self.weight.mul_(self.beta).add_(1 - self.beta)
