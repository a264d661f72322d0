"""Rows from arrays, tuples, frames, datasets and loaders in memory."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
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

from ppl_lvm.core.types import Array
from ppl_lvm.data import readers
from ppl_lvm.data.frames import as_frame, read_frame
from ppl_lvm.data.stores import ItemStore, ReaderResult, item_store, memory_store, part_names
from ppl_lvm.data.validation import (
    Columns,
    SourceLocation,
    check_shape,
    iterable_fault,
    list_fault,
)


def from_object(
    source: Any, columns: Columns, labels: str | int | None, missing: str
) -> ReaderResult:
    """Rows of an object, and its labels.

    Raises:
        ValueError: for an object that has no rows.
    """
    frame = as_frame(source, columns, labels)
    if frame is not None:
        name = "DataFrame" if type(source).__name__ == "Series" else type(source).__name__
        return read_frame(frame, f"the {name}", columns, labels, missing)
    source = _dense(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, columns, labels, missing)
    if isinstance(source, Tensor) and (columns is not None or labels is not None):
        raise ValueError("columns= and labels= apply to tables. Index the tensor instead.")
    if isinstance(source, Tensor):
        return ReaderResult(memory_store([source], SourceLocation("the tensor"), missing))
    if columns is not None:
        raise ValueError(f"columns= does not apply to a {type(source).__name__}. Omit it.")
    if isinstance(source, (tuple, DataLoader, Dataset)) and isinstance(labels, str):
        raise ValueError(f"labels={labels!r}: give the position of the labels, an index from 0.")
    position = labels if isinstance(labels, int) else None
    if isinstance(source, tuple):
        return _from_tuple(source, position, missing)
    if isinstance(source, DataLoader):
        _check_loader(source)
        return _from_items(source.dataset, source.collate_fn, position, missing)
    if isinstance(source, IterableDataset):
        raise ValueError(iterable_fault("the IterableDataset"))
    if isinstance(source, Dataset):
        return _from_items(source, None, position, missing)
    if isinstance(source, list):
        raise ValueError(f"{list_fault(source)}.")
    raise ValueError(
        f"source: cannot load a {type(source).__name__}. Give an array, a tensor, a tuple of "
        "them, a data frame, a torch Dataset or DataLoader, the name of a set, or a file's path."
    )


def _dense(source: Any) -> Any:
    """An array of SciPy's sparse kinds or of xarray as a NumPy array; other objects as they are."""
    sparse = sys.modules.get("scipy.sparse")
    if sparse is not None and sparse.issparse(source):
        return source.toarray()
    xarray = sys.modules.get("xarray")
    if xarray is not None and isinstance(source, xarray.DataArray):
        return source.to_numpy()
    return source


def _from_array(
    array: Array, columns: Columns, labels: str | int | None, missing: str
) -> ReaderResult:
    location = SourceLocation("the array")
    check_shape(array, location)
    if columns is None and labels is None:
        return ReaderResult(memory_store([array], location, missing))
    chosen, classes, location = readers.pick_from_array(array, location, columns, labels)
    return ReaderResult(memory_store([array[:, chosen]], location, missing), None, classes)


def _from_tuple(source: tuple[Any, ...], label: int | None, missing: str) -> ReaderResult:
    source = tuple(
        _tuple_part(part, f"element {n} of the tuple", n == label, missing)
        for n, part in enumerate(source)
    )
    for position, part in enumerate(source):
        if not isinstance(part, (np.ndarray, Tensor)):
            raise ValueError(
                f"Element {position} of the tuple is a {type(part).__name__}. Give arrays or "
                "tensors with the same rows: (x, y)."
            )
    parts = [part for position, part in enumerate(source) if position != label]
    classes = None if label is None else _label_part(source, label)
    if not parts:
        raise ValueError("The tuple has no tensor for the model. Give (x,), or (x, y).")
    name = "the tuple" if len(parts) > 1 else "the array"
    location = SourceLocation(name, parts=part_names(len(parts)))
    return ReaderResult(memory_store(parts, location, missing), None, classes)


def _tuple_part(part: Any, name: str, is_label: bool, missing: str) -> Any:
    """An array or a tensor of an element of a tuple; the columns of a frame that are numbers."""
    frame = as_frame(part, None, None)
    if frame is None:
        return _dense(part)
    if is_label and frame.shape[1] == 1:
        return frame.iloc[:, 0].to_numpy()
    (rows,) = read_frame(frame, name, missing=missing).store.all_rows()
    return rows[:, 0] if type(part).__name__ == "Series" else rows


def _from_items(dataset: Any, collate: Any, label: int | None, missing: str) -> ReaderResult:
    location = SourceLocation(f"the {type(dataset).__name__}")
    store = item_store(dataset, collate, location, missing, label)
    if label is None:
        return ReaderResult(store)
    if not isinstance(store, ItemStore):
        return _from_tuple(store.tensors, label, missing)
    chunks = torch.arange(len(store)).split(256)
    classes = [_label_part(store.read(chunk), label) for chunk in chunks]
    return ReaderResult(store, None, np.concatenate(classes))


def _label_part(parts: Sequence[Any], label: int) -> Array:
    if not 0 <= label < len(parts):
        raise ValueError(f"labels={label}: must be an index from 0 to {len(parts) - 1}.")
    return parts[label].numpy() if isinstance(parts[label], Tensor) else np.asarray(parts[label])


def _check_loader(loader: "DataLoader[Any]") -> None:
    """Reject loaders with a special order, since the training loop replaces it."""
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(iterable_fault("the DataLoader's dataset"))
    sampler = loader.sampler
    is_default = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(sampler.data_source)
    )
    if not is_default or type(loader.batch_sampler) is not BatchSampler:
        raise ValueError(
            "The DataLoader has a custom sampler or batches. The N/B scale of a mini-batch needs "
            "every row equally often: give the dataset, or a loader with batch_size= and shuffle= "
            "alone. Give weights of rows as weights=."
        )
