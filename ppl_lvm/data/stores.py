"""Row storage: memory, torch Datasets.

A store returns rows by index, as tensors for the model. Rows in memory are checked once, when the
store is built. Other rows are checked at each reading. `ppl_lvm.data.blocks` stores rows in files.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ppl_lvm.core.messages import reason_of
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Array
from ppl_lvm.data.rounding import warn_of_rounding
from ppl_lvm.data.validation import SourceLocation, check_shape, from_array, from_tensor

FIRST_ITEMS = 16  # of a Dataset, read when it is loaded


class Store(Protocol):
    """Rows 0..N-1."""

    @property
    def location(self) -> SourceLocation:
        """Names of rows and columns for messages."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> tuple[Tensor, ...]:
        """The rows `index` (B,) as tensors (B, ...)."""

    def all_rows(self) -> tuple[Tensor, ...]:
        """All rows; those not in memory are read now."""

    def fingerprint(self) -> str:
        """A digest that changes when the rows do."""


@dataclass(frozen=True)
class MemoryStore:
    """Rows of tensors in memory."""

    tensors: tuple[Tensor, ...]
    location: SourceLocation

    def __len__(self) -> int:
        return len(self.tensors[0])

    def take(self, index: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor[index.to(tensor.device)] for tensor in self.tensors)

    def all_rows(self) -> tuple[Tensor, ...]:
        return self.tensors

    def fingerprint(self) -> str:
        return _digest(self.tensors)


@dataclass(frozen=True)
class ItemStore:
    """A map-style torch Dataset, read item by item as by a DataLoader.

    Its transforms run at every reading, so random ones stay random. `skip` is the position of the
    labels in each item; the model must not see them.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any]
    location: SourceLocation
    skip: int | None = None
    missing: str = "error"

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: Tensor) -> tuple[Any, ...]:
        """The collated items of the rows `index`, labels included."""
        rows = index.tolist()
        if hasattr(self.dataset, "__getitems__"):
            items = self.dataset.__getitems__(rows)
        else:
            items = [self.dataset[row] for row in rows]
        try:
            batch = self.collate(items)
        except (TypeError, RuntimeError, ValueError, LookupError) as error:
            raise ValueError(
                f"{self.location.source}: its items do not become tensors ({reason_of(error)}). "
                "Let the dataset return tensors, arrays or numbers of one shape, or give a "
                "DataLoader with a collate_fn."
            ) from error
        return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)

    def take(self, index: Tensor, *, warn: bool = False) -> tuple[Tensor, ...]:
        parts = [part for k, part in enumerate(self.read(index)) if k != self.skip]
        rows = index.cpu().numpy()
        for part in parts:
            if not isinstance(part, Tensor) or part.dim() == 0 or len(part) != len(rows):
                kind = type(part).__name__
                shape = f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else f"a {kind}"
                raise ValueError(
                    f"{self.location.source}: {len(rows)} items were collated to {shape}. A "
                    f"batch needs tensors with {len(rows)} rows: a tensor or a tuple of tensors."
                )
        tensors = tuple(
            from_tensor(part, self.location, rows=rows, missing=self.missing) for part in parts
        )
        for part, tensor in zip(parts, tensors, strict=True) if warn else ():
            warn_of_rounding(part, tensor, self.location)
        return tensors

    def check_first(self) -> None:
        """Read a few items, which shows unusable ones and rounding."""
        self.take(torch.arange(min(len(self), FIRST_ITEMS)), warn=True)

    def all_rows(self) -> tuple[Tensor, ...]:
        return self.take(torch.arange(len(self)))

    def fingerprint(self) -> str:
        """Digest of the number of items and of up to 64 evenly spaced items."""
        index = torch.linspace(0, len(self) - 1, min(len(self), 64), dtype=torch.float64).long()
        with preserve_rng():
            torch.manual_seed(0)
            return _digest(self.take(index), f"{type(self.dataset).__name__} {len(self)}")


@dataclass(frozen=True)
class ReaderResult:
    """Rows for the model, and labels (N,) that it must not see."""

    store: Store
    columns: list[str] | None = None
    labels: Array | None = None
    image_shape: tuple[int, int] | None = None
    categories: dict[str, list[str]] | None = None


def memory_store(
    arrays: Sequence[Array | Tensor], location: SourceLocation, missing: str = "error"
) -> MemoryStore:
    """Check and convert arrays or tensors (N, ...) whose numbers of rows must agree.

    Raises:
        ValueError: for values that `from_array` rejects, or different numbers of rows.
    """
    for part, array in enumerate(arrays):
        if isinstance(array, np.ndarray):
            check_shape(array, location, part)
        elif array.dim() == 0:
            from_tensor(array, location, part)
    counts = [len(array) for array in arrays]
    if len(set(counts)) > 1:
        names = location.parts or tuple(str(k) for k in range(len(counts)))
        sizes = ", ".join(f"{name}: {count}" for name, count in zip(names, counts, strict=True))
        raise ValueError(
            f"{location.source}: the arrays have different numbers of rows ({sizes}). Row n of "
            "each array must describe observation n."
        )
    tensors = tuple(
        from_array(array, location, part, missing=missing)
        if isinstance(array, np.ndarray)
        else from_tensor(array, location, part, missing=missing)
        for part, array in enumerate(arrays)
    )
    for part, (array, tensor) in enumerate(zip(arrays, tensors, strict=True)):
        warn_of_rounding(array, tensor, location, part)
    return MemoryStore(tensors, location)


def item_store(
    dataset: Any, collate: Any, location: SourceLocation, missing: str, skip: int | None = None
) -> ItemStore | MemoryStore:
    """Store of a map-style dataset; the tensors of a TensorDataset are used directly.

    Raises:
        ValueError: for a dataset without a length or without rows.
    """
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{location.source} has no length. Give it __len__, so rows can be counted."
        )
    if len(dataset) == 0:
        raise ValueError(f"{location.source} has no rows. A fit needs at least one.")
    is_default = collate is None or collate is default_collate
    if isinstance(dataset, torch.utils.data.TensorDataset) and is_default:
        parts = part_names(len(dataset.tensors))
        return memory_store(dataset.tensors, replace(location, parts=parts), missing)
    collate = default_collate if is_default else collate
    store = ItemStore(dataset, collate, location, skip, missing)
    store.check_first()
    return store


def part_names(count: int) -> tuple[str, ...] | None:
    """Names of the arrays of a tuple in messages; one array alone needs no name."""
    return tuple(f"array {k + 1} of {count}" for k in range(count)) if count > 1 else None


def _digest(tensors: Sequence[Tensor], header: str = "") -> str:
    """SHA-256 of a header, shapes, types and bytes."""
    digest = hashlib.sha256(header.encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest.hexdigest()
