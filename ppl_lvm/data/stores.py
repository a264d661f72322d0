"""Where rows live: in memory, in a mapped file, or behind a torch Dataset.

A store hands out rows by their numbers, as tensors the model can take. Rows in memory are checked
once, when the store is made; rows elsewhere are checked whenever they are read, since reading
everything first is what such a store is there to avoid.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ppl_lvm.data.validation import Array, SourceLocation, check_shape, from_array, from_tensor


class Store(Protocol):
    """Rows 0..N-1."""

    @property
    def place(self) -> SourceLocation:
        """Names rows and columns for messages."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> tuple[Tensor, ...]:
        """The rows `index` (B,) as tensors (B, ...)."""

    def everything(self) -> tuple[Tensor, ...]:
        """All rows: those in memory as they are, all others read now."""

    def fingerprint(self) -> str:
        """A digest that changes when the rows do."""


@dataclass(frozen=True)
class MemoryStore:
    """Tensors that are here."""

    tensors: tuple[Tensor, ...]
    place: SourceLocation

    def __len__(self) -> int:
        return len(self.tensors[0])

    def take(self, index: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor[index.to(tensor.device)] for tensor in self.tensors)

    def everything(self) -> tuple[Tensor, ...]:
        return self.tensors

    def fingerprint(self) -> str:
        return _digest(self.tensors)


@dataclass(frozen=True)
class MappedStore:
    """One array (N, ...) in a file; a batch copies its own rows and nothing else.

    `columns` are the columns a row keeps. The file is never written to.
    """

    path: Path
    array: Array
    place: SourceLocation
    columns: Sequence[int] | None = None
    missing: str = "error"

    def __len__(self) -> int:
        return len(self.array)

    def take(self, index: Tensor) -> tuple[Tensor, ...]:
        rows = index.cpu().numpy()
        read = np.array(self.array[rows])
        if self.columns is not None:
            read = read[:, list(self.columns)]
        return (from_array(read, self.place, rows=rows, missing=self.missing),)

    def everything(self) -> tuple[Tensor, ...]:
        return self.take(torch.arange(len(self)))

    def fingerprint(self) -> str:
        """Of the file's size, its time of change, and a sample of its rows spread evenly.

        Reading a file larger than memory to learn its digest would cost more than an epoch; any
        program that writes to the file changes the time.
        """
        state = os.stat(self.path)
        spread = np.linspace(0, len(self) - 1, min(len(self), 64)).astype(np.int64)
        said = f"{self.array.shape} {self.array.dtype} {state.st_size} {state.st_mtime_ns}"
        rows = np.frombuffer(np.array(self.array[spread]).tobytes(), np.uint8).copy()
        return _digest((torch.from_numpy(rows),), said)


@dataclass(frozen=True)
class ItemStore:
    """A map-style torch Dataset, read item by item as a DataLoader would.

    Its transforms run at every reading, so random ones stay random. `skip` is the position, in
    each item, of labels that the model must not see.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any]
    place: SourceLocation
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
        except TypeError as error:
            raise ValueError(
                f"{self.place.source}: its items do not become tensors ({error}). Let the dataset "
                "return tensors, arrays or numbers, or give a DataLoader with a collate_fn."
            ) from error
        return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)

    def take(self, index: Tensor) -> tuple[Tensor, ...]:
        parts = [part for k, part in enumerate(self.read(index)) if k != self.skip]
        rows = index.cpu().numpy()
        for part in parts:
            if not isinstance(part, Tensor) or part.dim() == 0 or len(part) != len(rows):
                found = f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else type(part)
                raise ValueError(
                    f"{self.place.source}: {len(rows)} items were collated to {found}. A batch "
                    f"needs tensors with {len(rows)} rows: a tensor or a tuple of tensors."
                )
        return tuple(
            from_tensor(part, self.place, rows=rows, missing=self.missing) for part in parts
        )

    def everything(self) -> tuple[Tensor, ...]:
        return self.take(torch.arange(len(self)))

    def fingerprint(self) -> str:
        """Of the number of items and up to 64 of them spread evenly, read under a fixed seed."""
        index = torch.linspace(0, len(self) - 1, min(len(self), 64), dtype=torch.float64).long()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _digest(self.take(index), f"{type(self.dataset).__name__} {len(self)}")


@dataclass(frozen=True)
class Loaded:
    """What a reader found: rows for the model, and labels (N,) kept apart."""

    store: Store
    columns: list[str] | None = None
    labels: Array | None = None
    image_shape: tuple[int, int] | None = None


def memory_store(
    arrays: Sequence[Array | Tensor], place: SourceLocation, missing: str = "error"
) -> MemoryStore:
    """Check and convert arrays or tensors (N, ...) whose numbers of rows must agree.

    Raises:
        ValueError: for values that `from_array` refuses, or unequal numbers of rows.
    """
    for part, array in enumerate(arrays):
        if isinstance(array, np.ndarray):
            check_shape(array, place, part)
        elif array.dim() == 0:
            from_tensor(array, place, part)
    counts = [len(array) for array in arrays]
    if len(set(counts)) > 1:
        names = place.parts or tuple(str(k) for k in range(len(counts)))
        found = ", ".join(f"{name}: {count}" for name, count in zip(names, counts, strict=True))
        raise ValueError(
            f"{place.source}: the arrays must have as many rows as each other; rows are {found}. "
            "Row n of each belongs to datum n."
        )
    tensors = tuple(
        from_array(array, place, part, missing=missing)
        if isinstance(array, np.ndarray)
        else from_tensor(array, place, part, missing=missing)
        for part, array in enumerate(arrays)
    )
    return MemoryStore(tensors, place)


def item_store(
    dataset: Any, collate: Any, place: SourceLocation, missing: str
) -> ItemStore | MemoryStore:
    """A store over a map-style dataset; a TensorDataset's tensors are taken as they are.

    Raises:
        ValueError: for a dataset without a length or without rows.
    """
    if not hasattr(dataset, "__len__"):
        raise ValueError(f"{place.source} has no length. Give it __len__, so rows can be counted.")
    if len(dataset) == 0:
        raise ValueError(f"{place.source} has no rows. A fit needs at least one.")
    usual = collate is None or collate is default_collate
    if isinstance(dataset, torch.utils.data.TensorDataset) and usual:
        named = replace(place, parts=part_names(len(dataset.tensors)))
        return memory_store(dataset.tensors, named, missing)
    return ItemStore(dataset, default_collate if usual else collate, place, missing=missing)


def part_names(count: int) -> tuple[str, ...] | None:
    """How messages call the arrays of a tuple; one array alone needs no name."""
    return tuple(f"array {k + 1} of {count}" for k in range(count)) if count > 1 else None


def _digest(tensors: Sequence[Tensor], said: str = "") -> str:
    """SHA-256 of shapes, types and bytes."""
    digest = hashlib.sha256(said.encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest.hexdigest()
