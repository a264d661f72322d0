"""Arrays, tensors, datasets and loaders that are in memory already."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

from ppl_lvm.data import load_data

TABLE = np.arange(12.0).reshape(4, 3) / 8  # (4, 3), exact in float32


def test_arrays_and_tensors(same: Any) -> None:
    same(load_data(TABLE), TABLE)
    same(load_data(torch.tensor(TABLE)), TABLE)
    same(load_data(TABLE[::-1]), TABLE[::-1])
    same(load_data(TABLE[:, 0]), TABLE[:, 0])


def test_numpy_integers_become_floats_and_torch_integers_stay() -> None:
    x, y = load_data((np.array([[0, 1]]), torch.tensor([2]))).tensors
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64


def test_tuples_keep_labels_apart() -> None:
    x, y, k = torch.tensor(TABLE), torch.arange(4.0), np.array([3, 3, 7, 3])
    data = load_data((x, y, k), labels=2)
    assert len(data.tensors) == data.num_tensors == 2
    assert data.label_names == ["3", "7"]
    assert "array 2 of 2" in data.locate(0, part=1)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ((TABLE, TABLE[:2]), "array 1 of 2: 4, array 2 of 2: 2"),
        ((TABLE, [1, 2]), "Element 1 of the tuple is a list"),
        ((), "no tensor for the model"),
        ([1, 2], "Data cannot be made of a list"),
        (torch.tensor(3.0), "0-d"),
        (torch.zeros(0, 2), "no rows"),
        (torch.eye(2).to_sparse(), "to_dense"),
        (torch.zeros(2, dtype=torch.complex64), "complex"),
        (torch.tensor([[1.0, float("nan")]]), "row 1 (index 0), column 2 (index 1)"),
        (np.array(["a"]), "holds text"),
        (np.array([1, "a", None], dtype=object), "Python objects"),
        (pd.DataFrame({"a": []}), "no rows"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "both called 'a'"),
        (pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}), "row 2 (index 1), column 'a'"),
        (pd.DataFrame({"a": pd.to_datetime(["2020-01-01"])}), "the column's type is datetime64"),
    ],
)
def test_faults_of_objects(source: Any, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_data(source)
    assert said in str(caught.value)


class Squares(Dataset[Any]):
    """Items (x, label), counted so that tests see which were read."""

    def __init__(self, size: int = 5) -> None:
        self.size = size
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> tuple[Any, int]:
        self.read.append(row)
        return np.array([row, row**2]), row % 2


def test_a_dataset_is_read_item_by_item() -> None:
    source = Squares(100)
    data = load_data(source)
    source.read.clear()
    x, k = data.batch(torch.tensor([7, 3]))
    assert source.read == [7, 3]
    assert x.tolist() == [[7, 49], [3, 9]]
    assert k.tolist() == [1, 1]
    assert data.fingerprint() == load_data(Squares(100)).fingerprint()
    assert data.fingerprint() != load_data(Squares(99)).fingerprint()


def test_a_dataset_keeps_labels_apart() -> None:
    data = load_data(Squares(), labels=1)
    assert len(data.tensors) == 1
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 0, 1, 0]


def test_a_loader_gives_dataset_collation_and_batch_size(same: Any) -> None:
    def double(items: list[Any]) -> torch.Tensor:
        return 2 * torch.stack([torch.tensor(x, dtype=torch.float64) for x, _ in items])

    data = load_data(DataLoader(Squares(), batch_size=3, shuffle=True, collate_fn=double))
    assert data.batch_size == 3
    same(data, [[2 * n, 2 * n**2] for n in range(5)])
    tensors = TensorDataset(torch.tensor(TABLE), torch.arange(4))
    data = load_data(DataLoader(tensors, batch_size=2), labels=1)
    same(data, TABLE)
    assert data.label_names == ["0", "1", "2", "3"]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([torch.zeros(2)])


class Words(Dataset[Any]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, row: int) -> Any:
        return "word"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Stream(), "iterable only"),
        (DataLoader(Stream()), "iterable only"),
        (DataLoader(Squares(), sampler=WeightedRandomSampler([1.0] * 5, 5)), "sampler"),
        (DataLoader(Squares(), batch_sampler=[[0, 1]]), "sampler"),
        (DataLoader(Squares(), batch_size=None), "sampler"),
        (Words(), "A batch needs tensors with 1 rows"),
        (Squares(0), "no rows"),
    ],
)
def test_faults_of_datasets_and_loaders(source: Any, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_data(source)
    assert said in str(caught.value)


def test_a_bad_value_of_a_sequence_is_named_by_its_own_indices() -> None:
    x = np.ones((5, 4, 2))
    x[2, 3, 1] = np.inf
    with pytest.raises(ValueError, match=r"row 3 \(index 2\), at \(3, 1\) of \(4, 2\): inf is not"):
        load_data(x)
    x[1, 0, 1] = np.nan
    with pytest.raises(
        ValueError, match=r"row 2 \(index 1\), at \(0, 1\) of \(4, 2\): the value is m"
    ):
        load_data(torch.from_numpy(x))
