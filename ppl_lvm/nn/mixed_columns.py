"""Embeddings of categorical columns beside numeric ones."""

import torch
from torch import Tensor, nn

from ppl_lvm.core.validate import Count


class MixedColumns(nn.Module):
    """Rows with numeric and categorical columns -> numeric rows for a network.

    A category c of column p becomes a learned vector E_p[c]; a missing one (NaN, or pandas' -1) has
    a separate vector. Numeric columns come first, unchanged, 0 where they are missing.

    Args:
        columns: P.
        categories: column -> number of its categories, coded 0, 1, …
        size: length of a vector; None: half the number of categories, rounded up, at most 16.

    Attributes:
        width: length of an output row, the `inputs` of an `MLP`.

    Raises:
        ValueError: for an invalid column; from a call, for a code without a category.
    """

    def __init__(
        self, columns: Count, categories: dict[int, int], size: Count | None = None
    ) -> None:
        super().__init__()
        for column, count in categories.items():
            if not 0 <= column < columns or count < 1:
                raise ValueError(
                    f"categories={{{column}: {count}}}: columns are numbered 0 to {columns - 1} "
                    "and have at least 1 category."
                )
        self.columns = columns
        self.categories = dict(categories)
        self.numeric = [p for p in range(columns) if p not in categories]
        self.vectors = nn.ModuleDict(
            {
                str(p): nn.Embedding(count + 1, size or min(16, (count + 1) // 2))
                for p, count in categories.items()
            }
        )
        self.width = len(self.numeric) + sum(
            vectors.embedding_dim for vectors in self._tables().values()
        )

    def _tables(self) -> dict[int, nn.Embedding]:
        return {int(p): table for p, table in self.vectors.items()}  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        """Rows `x` (..., P), codes as whole numbers of any type: (..., width)."""
        if x.shape[-1] != self.columns:
            raise ValueError(f"MixedColumns takes {self.columns} columns, got {tuple(x.shape)}.")
        parts = [x[..., self.numeric].nan_to_num()]
        for p, table in self._tables().items():
            codes = x[..., p]
            row = (codes.where(~codes.isnan(), -1) + 1).long()  # row 0: missing
            try:
                parts.append(table(row))
            except IndexError:
                wrong = row[(row < 0) | (row >= table.num_embeddings)][0].item() - 1
                raise ValueError(
                    f"Column {p} holds the code {wrong}, but has the categories 0 to "
                    f"{self.categories[p] - 1}. Set categories={{{p}: …}}."
                ) from None
        dtype = next((part.dtype for part in parts[1:]), x.dtype)
        return torch.cat([part.to(dtype) for part in parts], -1)
