"""Data for a fit: named sets, files, arrays, frames, datasets, loaders -> rows of tensors.

    load_data("iris")                        a named set
    load_data("digits(binarize=8)")          with arguments
    load_data("flowers.csv", labels="kind")  a file: .csv .npy .npz .parquet
    load_data(array)                         NumPy, torch, a tuple of them, pandas, a torch
                                             Dataset, a DataLoader

What the model sees are tensors with rows first. Numbers become torch's default floating-point
type (torch tensors of integers stay integers, see `ppl_lvm.data.validation`). Labels are kept apart
and never reach the model. Nothing is dropped or filled; whatever cannot be used is an error that
names file, row and column and says what to do.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from ppl_lvm.data import datasets
from ppl_lvm.data import readers as files
from ppl_lvm.data.stores import ItemStore, Loaded, Store, item_store, memory_store, part_names
from ppl_lvm.data.validation import (
    MISSING,
    Array,
    Columns,
    SourceLocation,
    check_shape,
    code_labels,
    suggest,
)


@dataclass(frozen=True, eq=False)
class Data:
    """Rows 0..N-1 of one or several tensors, made by `load_data` and not changed afterwards.

    Attributes:
        name: what the data are called in reports.
        columns: names of the columns of a table (N, P), else None.
        labels: codes 0..C-1 (N,) with names in `label_names`, or numbers (N,) without names.
            They are for pictures and scores; the model never sees them.
        image_shape: height and width when a datum is a flattened picture.
        batch_size: that of the DataLoader the data came from, else None.
        source: what `load_data` was called with, where that was a name or a path; else None.
        store, rows: where the rows are, and which of them these are (None: all).
    """

    store: Store
    name: str
    columns: list[str] | None = None
    labels: Tensor | None = None
    label_names: list[str] | None = None
    image_shape: tuple[int, int] | None = None
    batch_size: int | None = None
    rows: Tensor | None = None
    source: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.store) if self.rows is None else len(self.rows)

    def __repr__(self) -> str:
        shapes = ", ".join(str(tuple(part.shape[1:])) for part in self.batch(torch.tensor([0])))
        return f"Data({self.name!r}, {len(self)} rows of shape {shapes})"

    @cached_property
    def num_tensors(self) -> int:
        """How many arguments `model(*batch)` takes; reads one row."""
        return len(self.batch(torch.tensor([0])))

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """All rows (N, ...).

        Of a memory-mapped file or a Dataset this reads every row into memory: use `batch`.
        """
        return self.store.everything() if self.rows is None else self.store.take(self.rows)

    def batch(self, index: Tensor) -> tuple[Tensor, ...]:
        """The rows `index` (B,) as tensors (B, ...), the arguments of `model(*batch)`.

        Raises:
            ValueError: for an unusable value in rows that are read only now.
        """
        return self.store.take(index if self.rows is None else self.rows[index])

    def fingerprint(self) -> str:
        """SHA-256 that changes when the rows do: to know whether a run goes on with its data.

        Large files and Datasets are sampled, see their stores.
        """
        whole = self.store.fingerprint()
        if self.rows is None:
            return whole
        return hashlib.sha256(whole.encode() + self.rows.numpy().tobytes()).hexdigest()

    def locate(self, row: int, column: int | None = None, part: int = 0) -> str:
        """Name a value for a message: file, line or row, and column.

        `row` counts from 0 in these data, `column` from 0 over the flattened datum, and `part`
        is the tensor's position when there are several.
        """
        at = row if self.rows is None else int(self.rows[row])
        return self.store.place.name(at, column, part)

    def split(self, held_out: int | float, seed: int) -> tuple["Data", "Data"]:
        """Set rows aside at random: (the others, the `held_out` ones), the same for one seed.

        `held_out` is a number of rows or a fraction between 0 and 1. Rows keep their order.

        Raises:
            ValueError: when one side would be empty.
        """
        size = _held_out_rows(held_out, len(self))
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[size:].sort().values), self.subset(order[:size].sort().values)

    def subset(self, index: Tensor) -> "Data":
        """The rows `index` (n,), in that order; nothing is read yet."""
        return replace(
            self,
            rows=index if self.rows is None else self.rows[index],
            labels=None if self.labels is None else self.labels[index],
            source=None,  # the name leads to all rows, not to these
        )


def load_data(
    source: Any,
    *,
    columns: Columns = None,
    labels: str | int | None = None,
    missing: str = "error",
    header: bool | None = None,
    image_shape: tuple[int, int] | None = None,
) -> Data:
    """Load data by name, from a file, or from objects in memory.

    Args:
        source: see the module. A string that is a name, or a call of one, is a named set; every
            other string is a path.
        columns: the columns (of an .npz: the arrays) the model sees, by name, or by index where
            columns have no names. Default: all but the labels.
        labels: the column, array, or position in a tuple, that holds labels, kept apart.
        missing: "error", or "keep" to pass missing values to the model as NaN.
        header: whether a .csv file's first line are names; None decides by looking.
        image_shape: (H, W) where rows are flattened pictures, so that they are drawn as such: of
            the first tensor, or of the rows of two, the parts of one picture, side by side.

    Of a DataLoader the dataset, the collate_fn and the batch size are used; shuffling and
    workers are the training loop's business.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: for whatever else cannot be used, with place and remedy.
    """
    if missing not in MISSING:
        raise ValueError(f"missing={missing!r}: {suggest(str(missing), MISSING)}")
    if isinstance(source, Data):
        raise ValueError("These data are loaded already; use them as they are.")
    if header is not None and not isinstance(source, (str, Path)):
        raise ValueError(f"header={header} is a question about .csv files only.")
    if isinstance(source, str) and _is_call(source):
        if labels is not None or header is not None:
            raise ValueError(f"{source} has no header and brings its own labels; leave these out.")
        named = _data(_named(source, columns), source.strip(), image_shape)
        return replace(
            named, source={"source": source, "columns": columns, "image_shape": image_shape}
        )
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        found = files.read(path, columns, labels, missing, header)
        loaded_file = _data(found, path.name, image_shape)
        words: dict[str, Any] = {"columns": columns, "labels": labels, "missing": missing}
        words |= {"header": header, "image_shape": image_shape}
        return replace(loaded_file, source={"source": str(path.resolve()), **words})
    batch_size = source.batch_size if isinstance(source, DataLoader) else None
    loaded = _from_object(source, columns, labels, missing)
    return replace(_data(loaded, loaded.store.place.source, image_shape), batch_size=batch_size)


def _data(loaded: Loaded, name: str, image_shape: Sequence[int] | None) -> Data:
    labels, label_names = None, None
    if loaded.labels is not None:
        where = f"{name}, labels"
        labels, label_names = code_labels(loaded.labels, where)
        if len(labels) != len(loaded.store):
            raise ValueError(f"{where}: {len(labels)} labels for {len(loaded.store)} rows.")
    shape = loaded.image_shape
    if image_shape is not None:
        shape = _checked_shape(image_shape, loaded.store, name)
    return Data(loaded.store, name, loaded.columns, labels, label_names, shape)


def _checked_shape(image_shape: Sequence[int], store: Store, name: str) -> tuple[int, int]:
    """(H, W), if a row of the first tensor, or of two side by side, has H W numbers."""
    widths = [t.shape[1] for t in store.take(torch.tensor([0])) if t.dim() == 2]
    size = math.prod(image_shape)
    if len(image_shape) != 2 or size not in (sum(widths[:1]), sum(widths[:2])):
        raise ValueError(
            f"{name}: image_shape={tuple(image_shape)} does not suit rows of "
            f"{' and '.join(map(str, widths)) or 'no'} numbers. Give (height, width), whose "
            "product is how many numbers a picture has."
        )
    H, W = image_shape
    return H, W


def _is_call(text: str) -> bool:
    """A name or a call, and not a path: no dot, no slash outside of brackets."""
    name = text.strip().split("(")[0].strip()
    return name in datasets.NAMED or (name.isidentifier() and not os.path.exists(text))


def _named(text: str, columns: Columns) -> Loaded:
    found = datasets.call(text)
    place = SourceLocation(text.strip(), found.columns, image_shape=found.image_shape)
    if columns is None:
        names = None if found.columns is None else list(found.columns)
        store = memory_store([found.values], place)
        return Loaded(store, names, found.labels, found.image_shape)
    frame = pd.DataFrame(found.values, columns=found.columns)
    return replace(files.read_frame(frame, place.source, columns), labels=found.labels)


def _from_object(source: Any, columns: Columns, labels: str | int | None, missing: str) -> Loaded:
    if isinstance(source, pd.Series):
        source = source.to_frame("values" if source.name is None else source.name)
    if isinstance(source, pd.DataFrame):
        return files.read_frame(source, "the DataFrame", columns, labels, missing)
    if isinstance(source, np.ndarray):
        return _from_array(source, columns, labels, missing)
    if isinstance(source, Tensor) and (columns is not None or labels is not None):
        raise ValueError("columns= and labels= choose from tables; index the tensor instead.")
    if isinstance(source, Tensor):
        return Loaded(memory_store([source], SourceLocation("the tensor"), missing))
    if columns is not None:
        raise ValueError(f"columns= does not apply to a {type(source).__name__}; leave it out.")
    if isinstance(source, (tuple, DataLoader, Dataset)) and isinstance(labels, str):
        raise ValueError(f"labels={labels!r}: give the position of the labels, counted from 0.")
    position = labels if isinstance(labels, int) else None
    if isinstance(source, tuple):
        return _from_tuple(source, position, missing)
    if isinstance(source, DataLoader):
        _check_loader(source)
        return _from_items(source.dataset, source.collate_fn, position, missing)
    if isinstance(source, IterableDataset):
        raise ValueError(_iterable("the IterableDataset"))
    if isinstance(source, Dataset):
        return _from_items(source, None, position, missing)
    raise ValueError(
        f"Data cannot be made of a {type(source).__name__}. Give an array, a tensor, a tuple of "
        "them, a DataFrame, a torch Dataset or DataLoader, the name of a set, or a file's path."
    )


def _from_array(array: Array, columns: Columns, labels: str | int | None, missing: str) -> Loaded:
    place = SourceLocation("the array")
    check_shape(array, place)
    if columns is None and labels is None:
        return Loaded(memory_store([array], place, missing))
    kept, classes, place = files.pick_from_array(array, place, columns, labels)
    return Loaded(memory_store([array[:, kept]], place, missing), None, classes)


def _from_tuple(source: tuple[Any, ...], label: int | None, missing: str) -> Loaded:
    for position, part in enumerate(source):
        if not isinstance(part, (np.ndarray, Tensor)):
            raise ValueError(
                f"Element {position} of the tuple is a {type(part).__name__}. Give arrays or "
                "tensors, (x, y), whose rows agree."
            )
    parts = [part for position, part in enumerate(source) if position != label]
    classes = None if label is None else _label_part(source, label)
    if not parts:
        raise ValueError("The tuple has no tensor for the model. Give (x,), or (x, y).")
    place = SourceLocation(
        "the tuple" if len(parts) > 1 else "the array", parts=part_names(len(parts))
    )
    return Loaded(memory_store(parts, place, missing), None, classes)


def _from_items(dataset: Any, collate: Any, label: int | None, missing: str) -> Loaded:
    store = item_store(dataset, collate, SourceLocation(f"the {type(dataset).__name__}"), missing)
    if label is None:
        store.take(torch.tensor([0]))  # whether items are of use shows in the first
        return Loaded(store)
    if not isinstance(store, ItemStore):
        return _from_tuple(store.tensors, label, missing)
    chunks = torch.arange(len(store)).split(256)
    read = [_label_part(store.read(chunk), label) for chunk in chunks]
    return Loaded(replace(store, skip=label), None, np.concatenate(read))


def _label_part(parts: Sequence[Any], label: int) -> Array:
    if not 0 <= label < len(parts):
        raise ValueError(f"labels={label}: there are {len(parts)} parts, counted from 0.")
    return parts[label].numpy() if isinstance(parts[label], Tensor) else np.asarray(parts[label])


def _check_loader(loader: "DataLoader[Any]") -> None:
    """A loader's order is replaced by the training loop's; refuse one that means something."""
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(_iterable("the DataLoader's dataset"))
    sampler = loader.sampler
    plain = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(sampler.data_source)
    )
    if not plain or type(loader.batch_sampler) is not BatchSampler:
        raise ValueError(
            "The DataLoader has a sampler or batches of its own. The N/B scale of a mini-batch "
            "needs every row equally often: give the dataset, or a loader with batch_size= and "
            "shuffle= alone. For weights, put them into the model with pyro.poutine.scale."
        )


def _iterable(what: str) -> str:
    return (
        f"{what} is iterable only: its rows cannot be counted or drawn by number. Wrap it as a "
        "map-style Dataset with __len__ and __getitem__, or write it to an .npy file, which is "
        "memory-mapped."
    )


def _held_out_rows(held_out: int | float, total: int) -> int:
    if isinstance(held_out, bool) or not isinstance(held_out, (int, float, np.integer)):
        raise ValueError(f"held_out={held_out!r} must be a number of rows or a fraction.")
    if isinstance(held_out, float) and not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out} is no fraction between 0 and 1; rows are integers.")
    size = round(held_out * total) if isinstance(held_out, float) else int(held_out)
    if not 0 < size < total:
        raise ValueError(
            f"held_out={held_out} of {total} rows sets {size} aside; at least one row must be on "
            "either side."
        )
    return size
