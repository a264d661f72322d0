"""Load named sets, files and objects as rows of tensors.

    load_data("iris")                        a named set
    load_data("digits(binarize=8)")          with arguments
    load_data("flowers.csv", labels="kind")  a file: .csv .tsv .txt .npy .npz .parquet .arrow
                                             .feather
    load_data("rows/*.parquet")              files of one format as one table; "rows": a folder
    load_data(array)                         NumPy, SciPy's sparse, torch, xarray; frames of pandas
                                             and polars, Arrow tables, AnnData; a tuple of them; a
                                             torch Dataset, a DataLoader

The model sees tensors with rows first. Numbers become torch's default floating-point type; torch
tensors of integers stay integers (see `ppl_lvm.data.validation`). Labels never reach the model.
Nothing is dropped or filled; unusable values are errors that name file, row, column and remedy.
Files of more than 64 MB in memory stay on disk, and are read in blocks (`ppl_lvm.data.blocks`).
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ppl_lvm.core.arguments import checked
from ppl_lvm.core.errors import ArgumentError
from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.tracebacks import trims_traceback
from ppl_lvm.core.validate import Count, Seed, Share, Whole
from ppl_lvm.data import datasets, readers
from ppl_lvm.data.blocks.opening import is_pattern
from ppl_lvm.data.blocks.order import ShuffleBlocks, in_order, is_few, row_blocks
from ppl_lvm.data.blocks.selection import RowSelection
from ppl_lvm.data.blocks.selection import split as split_rows
from ppl_lvm.data.blocks.store import AppendedStore, Blocked, BlockStore
from ppl_lvm.data.objects import from_object
from ppl_lvm.data.stores import ReaderResult, Store, memory_store
from ppl_lvm.data.validation import (
    Columns,
    Missing,
    SourceLocation,
    code_labels,
    held_out_rows,
    pick_columns,
)
from ppl_lvm.data.weights import other_columns, row_exposure, row_weights


@dataclass(frozen=True, eq=False)
class Data:
    """Immutable rows 0..N-1 of one or several tensors, built by `load_data`.

    Attributes:
        store: storage of the rows.
        name: name in reports.
        columns: names of the columns of a table, else None.
        labels: codes 0..C-1 (N,) with names in `label_names`, or numbers (N,) without names.
            They are for figures and scores; the model never sees them.
        label_names: names of the classes.
        image_shape: height and width where a row is a flattened picture.
        batch_size: batch size of the DataLoader that was loaded, else None.
        rows: indices into the store, None for all rows; bits where they are on disk.
        source: arguments of `load_data` if they were a name or a path, else None.
        weights: of rows (N,), or None.
        categories: categorical column -> its labels, of which the rows have the positions; or None.
    """

    store: Store
    name: str
    columns: list[str] | None = None
    labels: Tensor | None = None
    label_names: list[str] | None = None
    image_shape: tuple[int, int] | None = None
    batch_size: int | None = None
    rows: Tensor | RowSelection | None = None
    source: dict[str, Any] | None = None
    weights: Tensor | None = None
    categories: dict[str, list[str]] | None = None

    def __len__(self) -> int:
        return len(self.store) if self.rows is None else len(self.rows)

    def __repr__(self) -> str:
        shapes = ", ".join(str(tuple(part.shape[1:])) for part in self.batch(torch.tensor([0])))
        return f"Data({self.name!r}, {len(self)} rows of shape {shapes})"

    @cached_property
    def num_tensors(self) -> int:
        """Number of arguments of `model(*batch)`; reads one row."""
        return len(self.batch(torch.tensor([0])))

    @property
    def total_weight(self) -> float:
        """Σ w_n, which is N without weights."""
        return float(len(self)) if self.weights is None else float(self.weights.sum())

    @checked
    def with_weights(self, weights: Any) -> "Data":
        """The same rows with weights (N,)."""
        return replace(self, weights=row_weights(weights, len(self)), source=None)

    @checked
    def with_exposure(self, exposure: Any) -> "Data":
        """The same rows with exposures (N,), which the model receives as its last argument."""
        exposures = row_exposure(exposure, len(self))
        if isinstance(self.store, BlockStore):
            whole = torch.ones(len(self.store), dtype=exposures.dtype)
            whole[slice(None) if self.rows is None else self._numbers(self.rows)] = exposures
            return replace(self, store=AppendedStore(self.store, whole), source=None)
        tensors = [*self.tensors, exposures]
        store = memory_store(tensors, SourceLocation(self.name), "keep")
        return replace(self, store=store, rows=None, source=None)

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """All rows (N, ...).

        This reads every row of files or of a Dataset into memory: use `batch`.
        """
        if self.rows is None:
            return self.store.all_rows()
        return self.store.take(self._numbers(self.rows))

    @staticmethod
    def _numbers(rows: Tensor | RowSelection) -> Tensor:
        return rows if isinstance(rows, Tensor) else rows[torch.arange(len(rows))]

    @property
    def _is_resident(self) -> bool:
        """True for few rows of files, which are read once."""
        return isinstance(self.store, Blocked) and is_few(self.store, self.rows, readers.MAP_ABOVE)

    @cached_property
    def blocks(self) -> ShuffleBlocks | None:
        """Blocks of consecutive rows in files; None for rows in memory or in no order."""
        if self._is_resident or not isinstance(self.store, Blocked):
            return None
        return row_blocks(self.store, self.rows)

    @trims_traceback
    def batch(self, index: Tensor) -> tuple[Tensor, ...]:
        """The rows `index` (B,) as tensors (B, ...), the arguments of `model(*batch)`.

        Raises:
            ValueError: for an unusable value in rows that had not been read before.
        """
        try:
            if self._is_resident:
                return tuple(tensor[index] for tensor in self.tensors)
            return self.store.take(index if self.rows is None else self.rows[index])
        except (AttributeError, TypeError, IndexError, NotImplementedError, OverflowError):
            self._check_index(index)
            raise  # of a Dataset

    def fingerprint(self) -> str:
        """SHA-256 that changes with the rows or their files; see the stores."""
        digest = self.store.fingerprint()
        for part in (p for p in (self.weights, self.rows) if p is not None):
            digest = hashlib.sha256(digest.encode() + part.numpy().tobytes()).hexdigest()
        return digest

    @checked
    def locate(self, row: Whole, column: Whole | None = None, part: Whole = 0) -> str:
        """Name of a value in messages: file, line or row, and column.

        `row` counts from 0 in these data, `column` from 0 over the flattened row. `part` is the
        index of the tensor where there are several.
        """
        source_row = row if self.rows is None else int(self.rows[torch.tensor([row])])
        return self.store.location.name(source_row, column, part)

    @checked
    def split(
        self, held_out: Whole | Share, seed: Seed, *, option: str = "held_out"
    ) -> tuple["Data", "Data"]:
        """Random split into (training rows, held-out rows), determined by the seed.

        `held_out` is a number of rows or a fraction between 0 and 1. Rows keep their order.
        Messages call the number by the name `option`.

        Raises:
            ValueError: one side would be empty.
        """
        size = held_out_rows(held_out, len(self), option)
        if self.blocks is not None and self.rows is None:
            train, other = split_rows(self.blocks.sizes, size, seed)
            return self._part(train), self._part(other)
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[size:].sort().values), self.subset(order[:size].sort().values)

    def _check_index(self, index: Any) -> None:
        """Raise `ArgumentError` unless these are whole numbers (B,) of rows."""
        N = len(self)
        whole = isinstance(index, Tensor) and not (index.is_floating_point() or index.is_complex())
        if not whole or index.dim() != 1 or index.is_sparse or index.is_meta:
            problem = "is no tensor (B,) of whole numbers"
        elif index.dtype == torch.bool:
            if len(index) == N:
                return
            problem = f"has {len(index)} truth values for {N} rows"
        elif len(index) and not (int(index.min()) >= -N and int(index.max()) < N):
            problem = f"has numbers from {int(index.min())} to {int(index.max())}, of {N} rows"
        else:
            return
        raise ArgumentError(f"index: it {problem}. Pass numbers of rows, torch.tensor([0, 1]).")

    @checked
    def subset(self, index: Tensor) -> "Data":
        """The rows `index` (n,), in that order, without reading them."""
        self._check_index(index)
        return self._part(index)

    def _part(self, rows: Tensor | RowSelection) -> "Data":
        per_row = self.labels is not None or self.weights is not None or self.rows is not None
        index: Any = self._numbers(rows) if per_row else rows
        return replace(
            self,
            rows=index if self.rows is None else self.rows[index],
            labels=None if self.labels is None else self.labels[index],
            weights=None if self.weights is None else self.weights[index],
            source=None,  # the name refers to all rows
        )


@public_call(runs_programs=False)
def load_data(
    source: Any,
    *,
    columns: Columns = None,
    labels: str | int | None = None,
    missing: Missing = "error",
    header: bool | None = None,
    image_shape: tuple[Count, Count] | None = None,
    one_sequence: bool = False,
    weights: Any = None,
    exposure: Any = None,
    shuffle_buffer: Count = readers.BUFFER,
) -> Data:
    """Load data by name, from a file, or from objects in memory.

    Args:
        source: see the module. A name, or a call of one, is a named set; other text is a path. The
            sampler and workers of a DataLoader are not used.
        columns: columns (.npz: arrays) for the model, by name or index; default: all.
        labels: column, array, or position in a tuple with labels for figures and scores.
        missing: "error", or "keep" to pass missing values to the model as NaN.
        header: whether the first line of a .csv file has names; None infers it from the line.
        image_shape: (H, W) of flattened pictures, so that figures draw them as pictures. The
            picture is a row of the first tensor, or of two side by side.
        one_sequence: the rows are the T steps of one sequence, so the model sees (1, T, P).
        weights: a table's column or an array (N,); 2 counts as two equal rows. Not for the model.
        exposure: a table's column or an array (N,), positive: model(x, exposure) multiplies the
            rate of counts by it.
        shuffle_buffer: rows of files on disk that are shuffled together, after the blocks (row
            groups) have been; at least one block. Up to four buffers are in memory.

    The dataset, collate_fn and batch size of a DataLoader are used, not its sampler and workers.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: for any other unusable source, with location and remedy.
    """
    if exposure is not None:
        options: dict[str, Any] = {"labels": labels, "missing": missing, "header": header}
        options |= {"image_shape": image_shape, "one_sequence": one_sequence}
        options |= {"shuffle_buffer": shuffle_buffer}
        return _exposed(source, exposure, columns, weights, options)
    if weights is not None and one_sequence:
        raise ValueError("weights: one sequence is one row. Omit weights=.")
    if weights is not None:
        options = {"labels": labels, "missing": missing, "header": header}
        options |= {"image_shape": image_shape, "shuffle_buffer": shuffle_buffer}
        return _weighted(source, weights, columns, options)
    if one_sequence:
        options = {"columns": columns, "missing": missing, "header": header}
        return _one_sequence(load_data(source, labels=labels, **options), missing)
    if isinstance(source, Data):
        raise ValueError("source: these data are already loaded. Use them directly.")
    if isinstance(source, str) and not source.strip():
        raise ValueError(f"{source!r} names no data. Give the name of a set or a file's path.")
    if header is not None and not isinstance(source, (str, Path)):
        raise ValueError(f"header={header} applies to .csv files only. Omit it.")
    if isinstance(source, str) and _is_call(source):
        if labels is not None or header is not None:
            raise ValueError(
                f"{source} has its own labels and no header. Omit labels= and header=."
            )
        named = _data(_named(source, columns), source.strip(), image_shape)
        return replace(
            named, source={"source": source, "columns": columns, "image_shape": image_shape}
        )
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        result = readers.read(path, columns, labels, missing, header, shuffle_buffer)
        name = path.resolve().parent.name if is_pattern(path) else path.name
        data = _data(result, name, image_shape)
        options = {"columns": columns, "labels": labels, "missing": missing}
        options |= {"header": header, "image_shape": image_shape}
        if shuffle_buffer != readers.BUFFER:
            options["shuffle_buffer"] = shuffle_buffer
        return replace(data, source={"source": str(path.resolve()), **options})
    batch_size = source.batch_size if isinstance(source, DataLoader) else None
    result = from_object(source, columns, labels, missing)
    return replace(_data(result, result.store.location.source, image_shape), batch_size=batch_size)


def _weighted(source: Any, weights: Any, columns: Columns, options: dict[str, Any]) -> Data:
    """Data with weights from a column of the source or from an array."""
    if not isinstance(weights, str):
        return load_data(source, columns=columns, **options).with_weights(weights)
    whole = load_data(source, **options)
    selected, column = other_columns(whole.columns, weights, columns, whole.name)
    data = load_data(source, columns=selected, **options)
    recorded = None if data.source is None else {**data.source, "weights": weights}
    return replace(data.with_weights(_column(whole, column)), source=recorded)


def _column(data: Data, column: int) -> Tensor:
    """One column (N,) of a table."""
    return torch.cat([t[:, column].clone() for t, *_ in map(data.batch, in_order(data, 2**16))])


def _exposed(
    source: Any, exposure: Any, columns: Columns, weights: Any, options: dict[str, Any]
) -> Data:
    """Data with exposures from a column of the source or from an array."""
    if not isinstance(exposure, str):
        data = load_data(source, columns=columns, weights=weights, **options)
        return data.with_exposure(exposure)
    whole = load_data(source, **options)
    selected, column = other_columns(whole.columns, exposure, columns, whole.name, "exposures")
    if columns is None:
        selected = [name for name in selected if not (isinstance(weights, str) and name == weights)]
    data = load_data(source, columns=selected, weights=weights, **options)
    recorded = None if data.source is None else {**data.source, "exposure": exposure}
    return replace(data.with_exposure(_column(whole, column)), source=recorded)


def _data(result: ReaderResult, name: str, image_shape: Sequence[int] | None) -> Data:
    labels, label_names = None, None
    if result.labels is not None:
        where = f"{name}, labels"
        labels, label_names = code_labels(result.labels, where)
        if len(labels) != len(result.store):
            raise ValueError(f"{where}: {len(labels)} labels for {len(result.store)} rows.")
    shape = result.image_shape
    if image_shape is not None:
        shape = _checked_shape(image_shape, result.store, name)
    data = Data(result.store, name, result.columns, labels, label_names, shape)
    return replace(data, categories=result.categories)


def _one_sequence(data: Data, missing: str) -> Data:
    """The rows of `data` (T, P) as one sequence (1, T, P)."""
    tensors = data.batch(torch.arange(len(data)))
    if data.labels is not None or len(tensors) != 1 or tensors[0].dim() > 2:
        raise ValueError(
            f"{data.name}: one_sequence takes steps (T, P) of one array without labels. Omit "
            "one_sequence and labels."
        )
    store = memory_store([tensors[0][None]], SourceLocation(data.name), missing)
    source = None if data.source is None else {**data.source, "one_sequence": True}
    return replace(data, store=store, source=source, image_shape=None)


def _checked_shape(image_shape: Sequence[int], store: Store, name: str) -> tuple[int, int]:
    """(H, W) if a row of the first tensor, or of two side by side, has H W values."""
    widths = [t.shape[1] for t in store.take(torch.tensor([0])) if t.dim() == 2]
    if math.prod(image_shape) not in (sum(widths[:1]), sum(widths[:2])):
        raise ValueError(
            f"{name}: image_shape={tuple(image_shape)} does not fit rows of "
            f"{' and '.join(map(str, widths)) or 'no'} values. Give (height, width) whose "
            "product is the number of values in a picture."
        )
    return image_shape[0], image_shape[1]


def _is_call(text: str) -> bool:
    """True for a name or a call, False for a path (dot or slash outside brackets)."""
    name = text.strip().split("(")[0].strip()
    return name in datasets.NAMED or (name.isidentifier() and not os.path.exists(text))


def _named(text: str, columns: Columns) -> ReaderResult:
    named, source = datasets.call(text), text.strip()
    if columns is None:
        names = None if named.columns is None else list(named.columns)
        location = SourceLocation(source, named.columns, image_shape=named.image_shape)
        store = memory_store([named.values], location)
        return ReaderResult(store, names, named.labels, named.image_shape)
    chosen, _ = pick_columns(named.columns, named.values.shape[1], columns, None, source)
    picked = tuple((named.columns or ())[k] for k in chosen)
    store = memory_store([named.values[:, chosen]], SourceLocation(source, picked))
    return ReaderResult(store, list(picked), named.labels)
