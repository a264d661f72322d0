"""Permutation-invariant encoders of sets (deep sets).

    h = mean over the present elements m of φ(x_m),   output = ρ(h, log(1 + their number))

Every continuous function of a set is of this form, with a sum in place of the mean (Zaheer et
al. 2017, theorem 2). Mean and number together determine the sum, and keep their scale as sets grow.

References:
    Zaheer, Kottur, Ravanbakhsh, Póczos, Salakhutdinov, Smola (2017). Deep sets.
    https://arxiv.org/abs/1703.06114
    Ma, Tschiatschek, Palla, Hernández-Lobato, Nowozin, Zhang (2019). EDDI: efficient dynamic
    discovery of high-value information with partial VAE. https://arxiv.org/abs/1809.11142
"""

import torch
from torch import Tensor, nn

from ppl_lvm.core.validate import Count
from ppl_lvm.nn.mlp import MLP


class SetEncoder(nn.Module):
    """One row for a set of M elements of F numbers each.

    Args:
        inputs: F.
        outputs: length of an output row.
        features: length of φ's output.
        hidden: widths of the hidden layers of φ, and of ρ.
        activation: of both.
    """

    def __init__(
        self,
        inputs: Count,
        outputs: Count,
        features: Count = 64,
        hidden: tuple[Count, ...] = (64,),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.element = MLP(inputs, features, hidden, activation)
        self.whole = MLP(features + 1, outputs, hidden, activation)

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """Rows (..., outputs) of sets `x` (..., M, F); `present` (..., M) masks their elements.

        By default the elements without NaN are present. The others have no influence and no
        gradient.
        """
        if present is None:
            present = ~x.isnan().any(-1)
        there = present.unsqueeze(-1)  # (..., M, 1)
        features = self.element(x.where(there, 0.0)).where(there, 0.0)  # (..., M, features)
        count = there.sum(-2).to(features)  # (..., 1)
        mean = features.sum(-2) / count.clamp(min=1.0)
        out: Tensor = self.whole(torch.cat([mean, count.log1p()], -1))
        return out


class PartialEncoder(nn.Module):
    """Rows with missing values as sets of pairs (column, value) of the present ones.

    Unlike a `RowEncoder` it imputes nothing, and a row with few present columns among many is a
    small set. Put `Standardize` in front where columns differ in units:
    `nn.Sequential(Standardize(x), PartialEncoder(P, 2 * D))`.

    Args:
        columns: P.
        outputs: length of an output row.
        size: length of a column's learned embedding.
        features, hidden, activation: as `SetEncoder`.
    """

    def __init__(
        self,
        columns: Count,
        outputs: Count,
        size: Count = 8,
        features: Count = 64,
        hidden: tuple[Count, ...] = (64,),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.names = nn.Parameter(torch.randn(columns, size))  # (P, size)
        self.set = SetEncoder(1 + size, outputs, features, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Rows `x` (..., P), NaN where a value is missing: rows (..., outputs)."""
        if x.shape[-1] != len(self.names):
            raise ValueError(
                f"PartialEncoder takes {len(self.names)} columns, got {tuple(x.shape)}."
            )
        names = self.names.expand(*x.shape, -1)  # (..., P, size)
        value = x.nan_to_num().to(names).unsqueeze(-1)
        out: Tensor = self.set(torch.cat([value, names], -1), ~x.isnan())
        return out
