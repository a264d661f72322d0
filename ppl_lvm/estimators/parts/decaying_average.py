"""Bias-corrected decaying average, stored as buffers.

    a ← β a + (1 - β) m,   n ← β n + (1 - β),   average = a / n

Division by n corrects for the initial value zero. Before the first step the average is 0.
"""

from typing import Any

import torch
from torch import Tensor, nn


class DecayingAverage(nn.Module):
    """Decaying average of one or several scalars; call `add` after use."""

    total: Tensor
    weight: Tensor

    def __init__(self, beta: float) -> None:
        super().__init__()
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"A decaying average needs 0 <= beta < 1, got beta={beta}.")
        self.beta = beta
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    def resize(self, size: int) -> None:
        """Average `size` quantities, of which each begins at the current average."""
        shape = torch.Size([] if size == 1 else [size])
        if self.total.shape != shape:
            self.total = self.total.mean().expand(shape).clone()

    def forward(self) -> Tensor:
        """The current average: a scalar, or (S,) after `resize`."""
        tiny = torch.finfo(self.weight.dtype).tiny
        return (self.total / self.weight.clamp_min(tiny)).to(torch.get_default_dtype())

    @torch.no_grad()
    def add(self, *values: Tensor) -> None:
        """Update the average with the mean of each of the `values` (any shapes)."""
        means = torch.stack([value.mean() for value in values]).reshape(self.total.shape)
        self.total.mul_(self.beta).add_((1 - self.beta) * means.to(self.total))
        self.weight.mul_(self.beta).add_(1 - self.beta)

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        if f"{prefix}total" in state:
            self.resize(state[f"{prefix}total"].numel())
        super()._load_from_state_dict(state, prefix, *args)
