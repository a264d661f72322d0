"""Rows of numbers as they come, in units that a network likes, with or without gaps."""

import torch
from torch import Tensor, nn

from ppl_lvm.nn.mlp import MLP

FAR = 10.0  # standard deviations


def reined(x: Tensor) -> Tensor:
    """`x` up to ±10; what lies d beyond enters as ±(10 + d / (1 + d / 10)): in order, below ±20.

    A count that is rare in the rows that units were taken from may lie hundreds of their standard
    deviations off in others, and a network's exponential of that would be infinite.
    """
    near = x.clamp(-FAR, FAR)
    beyond = x - near
    return near + beyond / (1 + beyond.abs() / FAR)


class Standardize(nn.Module):
    """All numbers of a datum side by side, in units of the batch it was built with: (B, P).

    Columns whose values all lie in [0, 1] (bits, grey levels) come as they are; if any does not,
    each column is centred and divided by its standard deviation, or by the largest one where it
    is constant. Missing values (NaN) are passed over there, and stay missing here.

    Args:
        batch: tensors with rows first, as the model takes them.
    """

    shift: Tensor  # (P,)
    scale: Tensor  # (P,)

    def __init__(self, *batch: Tensor) -> None:
        super().__init__()
        x = side_by_side(*batch)
        shift, scale = torch.zeros_like(x[0]), torch.ones_like(x[0])
        known = ~x.isnan()
        values = x.where(known, 0.0)
        if values.min() < 0 or values.max() > 1:
            count = known.sum(0).clamp(min=1)
            shift = values.sum(0) / count
            spread = (((x - shift).where(known, 0.0)) ** 2).sum(0).div(count).sqrt()
            # A column that these rows show as constant may vary in others: not by its rounding.
            constant = spread <= 1e-6 * values.abs().amax(0)
            if not constant.all():
                scale = spread.where(~constant, spread.max())
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward(self, *batch: Tensor) -> Tensor:
        """Rows of the batch: (B, P), NaN where a value is missing.

        Raises:
            ValueError: for another P than that of the rows it was built with.
        """
        x = side_by_side(*batch)
        if x.shape[-1] != len(self.shift):
            raise ValueError(
                f"This encoder was built for {len(self.shift)} numbers a row, and a row has "
                f"{x.shape[-1]}. Give rows of the same shape (fill short sequences up with NaN), "
                "or a guide for sequences of any length: AmortizedRecurrent."
            )
        return (x - self.shift) / self.scale


class RowEncoder(nn.Module):
    """An `MLP` over all the columns of a batch, in the units of `Standardize`, outliers reined in.

    A missing value (NaN) enters as the column's centre and carries no gradient. Where the rows it
    was built with have some, or with `missing=True`, the network is told which are there.

    Args:
        batch: some rows, the more typical the better.
        outputs: numbers that come out for each row.
        hidden, activation, norm: of the `MLP`.
        missing: whether to expect gaps; None: whether these rows have any.
    """

    def __init__(
        self,
        *batch: Tensor,
        outputs: int,
        hidden: tuple[int, ...] = (128,),
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
        x = reined(x.masked_fill(gaps, 0.0))
        if self.missing:
            x = torch.cat([x, (~gaps).to(x)], -1)
        out: Tensor = self.net(x)
        return out


def side_by_side(*batch: Tensor) -> Tensor:
    """All numbers of a datum, of every tensor of the batch: (B, P)."""
    dtype = next((x.dtype for x in batch if x.is_floating_point()), torch.get_default_dtype())
    return torch.cat([x.reshape(len(x), -1).to(dtype) for x in batch], dim=-1)
