"""Encoder of standardized rows with missing values."""

import torch
from torch import Tensor, nn

from ppl_lvm.core.validate import Count
from ppl_lvm.nn.mlp import MLP
from ppl_lvm.nn.units import column_units, is_binary

FAR = 10.0  # standard deviations


def soft_clip(x: Tensor) -> Tensor:
    """Soft clipping: `x` up to ±10; 10 + d enters as ±(10 + d / (1 + d / 10)), below ±20.

    A count that is rare in the rows that set the units may lie hundreds of their standard
    deviations off in others, and a network's exponential of that would be infinite.
    """
    near = x.clamp(-FAR, FAR)
    beyond = x - near
    return near + beyond / (1 + beyond.abs() / FAR)


class Standardize(nn.Module):
    """All columns of a batch concatenated and standardized: (B, P).

    Zeros and ones stay as they are. If there is any other value, each column is centered and
    divided by its standard deviation in the rows of the constructor, or by the largest one where it
    is constant. Missing values (NaN) are left out there, and stay missing.

    Args:
        batch: tensors with rows first, as the model takes them.
    """

    shift: Tensor  # (P,)
    scale: Tensor  # (P,)

    def __init__(self, *batch: Tensor) -> None:
        super().__init__()
        x = side_by_side(*batch)
        shift, scale = torch.zeros_like(x[0]), torch.ones_like(x[0])
        if not is_binary(x):
            # A constant column may vary in other rows; rounding must not set its unit.
            shift, scale = (t.to(x) for t in column_units(x, constant="largest"))
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    @property
    def center(self) -> Tensor:
        """The shift, as `InUnits` reads it."""
        return self.shift

    def forward(self, *batch: Tensor) -> Tensor:
        """Rows of the batch: (B, P), NaN where a value is missing.

        Raises:
            ValueError: for another P than in the constructor.
        """
        x = side_by_side(*batch)
        if x.shape[-1] != len(self.shift):
            raise ValueError(
                f"This encoder takes rows of {len(self.shift)} columns, got {x.shape[-1]}. Give "
                "rows of the same shape (pad short sequences with NaN), "
                "or a guide for sequences of any length: AmortizedRecurrent."
            )
        return (x - self.shift) / self.scale


class RowEncoder(nn.Module):
    """An `MLP` over all columns of a batch, standardized, with outliers clipped softly.

    A missing value (NaN) enters as the column's center and carries no gradient. If the rows of the
    constructor have missing values, or with `missing=True`, a mask is a further input.

    Args:
        batch: some rows, the more typical the better.
        outputs: length of an output row.
        hidden, activation, norm: of the `MLP`.
        missing: True to expect missing values; None: True if these rows have any.
    """

    def __init__(
        self,
        *batch: Tensor,
        outputs: Count,
        hidden: tuple[Count, ...] = (128,),
        activation: str = "relu",
        norm: str | None = None,
        missing: bool | None = None,
    ) -> None:
        super().__init__()
        x = side_by_side(*batch)
        self.missing = bool(x.isnan().any()) if missing is None else missing
        self.units = Standardize(*batch)
        inputs = x.shape[1] * (2 if self.missing else 1)
        self.net = MLP(inputs, outputs, hidden, activation, norm).to(x)

    def forward(self, *batch: Tensor) -> Tensor:
        """Encode the rows of a batch: (B, outputs)."""
        x = self.units(*batch)
        gaps = x.isnan()
        x = soft_clip(x.masked_fill(gaps, 0.0))
        if self.missing:
            x = torch.cat([x, (~gaps).to(x)], -1)
        out: Tensor = self.net(x)
        return out


def side_by_side(*batch: Tensor) -> Tensor:
    """All tensors of a batch as rows (B, P)."""
    if not all(x.dim() and len(x) for x in batch):
        raise ValueError("batch: a tensor has no rows. Pass some typical rows.")
    dtype = next((x.dtype for x in batch if x.is_floating_point()), torch.get_default_dtype())
    return torch.cat([x.reshape(len(x), -1).to(dtype) for x in batch], dim=-1)
