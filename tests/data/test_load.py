"""Loading from memory, splits, fingerprints and picture shapes."""

import json
from pathlib import Path
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


def test_load_data_accepts_arrays_and_tensors(same: Any) -> None:
    same(load_data(TABLE), TABLE)
    same(load_data(torch.tensor(TABLE)), TABLE)
    same(load_data(TABLE[::-1]), TABLE[::-1])
    same(load_data(TABLE[:, 0]), TABLE[:, 0])


def test_load_data_converts_numpy_integers_but_not_torch_integers() -> None:
    x, y = load_data((np.array([[0, 1]]), torch.tensor([2]))).tensors
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64


@pytest.mark.parametrize("kind", ["csr_matrix", "csc_array", "coo_matrix"])
def test_load_data_accepts_sparse_counts_of_scipy(kind: str, same: Any) -> None:
    sparse = getattr(pytest.importorskip("scipy.sparse"), kind)
    same(load_data(sparse(TABLE)), TABLE)
    same(load_data(sparse(TABLE), columns=[2]), TABLE[:, 2:])


def test_load_data_separates_labels_of_a_tuple() -> None:
    x, y, k = torch.tensor(TABLE), torch.arange(4.0), np.array([3, 3, 7, 3])
    data = load_data((x, y, k), labels=2)
    assert len(data.tensors) == data.num_tensors == 2
    assert data.label_names == ["3", "7"]
    assert "array 2 of 2" in data.locate(0, part=1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((TABLE, TABLE[:2]), "array 1 of 2: 4, array 2 of 2: 2"),
        ((TABLE, [1, 2]), "Element 1 of the tuple is a list"),
        ((), "no tensor for the model"),
        ("", "'' names no data"),
        ([1, 2], "the list cannot be loaded. Pass np.array(rows)"),
        ([TABLE, TABLE[:2]], "Pad them with NaN"),
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
def test_load_data_names_faults_of_objects(source: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_data(source)
    assert message in str(caught.value)


class Squares(Dataset[Any]):
    """Items (x, label) that record which were read."""

    def __init__(self, size: int = 5) -> None:
        self.size = size
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> tuple[Any, int]:
        self.read.append(row)
        return np.array([row, row**2]), row % 2


def test_dataset_is_read_item_by_item() -> None:
    source = Squares(100)
    data = load_data(source)
    source.read.clear()
    x, k = data.batch(torch.tensor([7, 3]))
    assert source.read == [7, 3]
    assert x.tolist() == [[7, 49], [3, 9]]
    assert k.tolist() == [1, 1]
    assert data.fingerprint() == load_data(Squares(100)).fingerprint()
    assert data.fingerprint() != load_data(Squares(99)).fingerprint()


def test_load_data_separates_labels_of_a_dataset() -> None:
    data = load_data(Squares(), labels=1)
    assert len(data.tensors) == 1
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 0, 1, 0]


def test_loader_provides_dataset_collation_and_batch_size(same: Any) -> None:
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
    ("source", "message"),
    [
        (Stream(), "iterable only"),
        (DataLoader(Stream()), "iterable only"),
        (DataLoader(Squares(), sampler=WeightedRandomSampler([1.0] * 5, 5)), "sampler"),
        (DataLoader(Squares(), batch_sampler=[[0, 1]]), "sampler"),
        (DataLoader(Squares(), batch_size=None), "sampler"),
        (Words(), "A batch needs tensors with 2 rows"),
        (Squares(0), "no rows"),
    ],
)
def test_load_data_names_faults_of_datasets_and_loaders(source: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_data(source)
    assert message in str(caught.value)


def test_non_finite_value_of_a_sequence_is_named_by_its_indices() -> None:
    x = np.ones((5, 4, 2))
    x[2, 3, 1] = np.inf
    with pytest.raises(ValueError, match=r"row 3 \(index 2\), at \(3, 1\) of \(4, 2\): inf is not"):
        load_data(x)
    x[1, 0, 1] = np.nan
    with pytest.raises(
        ValueError, match=r"row 2 \(index 1\), at \(0, 1\) of \(4, 2\): the value is m"
    ):
        load_data(torch.from_numpy(x))


def test_split_partitions_rows_with_labels_and_locations() -> None:
    data = load_data("iris")
    train, test = data.split(0.2, seed=3)
    assert (len(train), len(test)) == (120, 30)
    assert train.rows is not None
    assert test.rows is not None
    assert torch.cat([train.rows, test.rows]).sort().values.tolist() == list(range(150))
    row = int(test.rows[4])
    assert torch.equal(test.batch(torch.tensor([4]))[0], data.tensors[0][[row]])
    assert test.labels is not None
    assert data.labels is not None
    assert test.labels[4] == data.labels[row]
    assert f"row {row + 1} " in test.locate(4)
    deeper, _ = test.split(10, seed=0)
    assert torch.equal(deeper.tensors[0], deeper.batch(torch.arange(20))[0])


def test_split_depends_only_on_its_seed() -> None:
    data = load_data("iris")
    torch.manual_seed(1)
    first = data.split(30, seed=0)[1]
    torch.manual_seed(2)
    again, other = data.split(30, seed=0)[1], data.split(30, seed=1)[1]
    assert torch.equal(first.tensors[0], again.tensors[0])
    assert first.fingerprint() == again.fingerprint()
    assert first.fingerprint() != other.fingerprint()
    assert first.fingerprint() != data.fingerprint()


@pytest.mark.parametrize("held_out", [0, 150, -1, 1.0, 0.001, True, "half"])
def test_split_rejects_an_empty_side(held_out: Any) -> None:
    with pytest.raises(ValueError, match="held_out="):
        load_data("iris").split(held_out, seed=0)


def test_data_is_immutable() -> None:
    with pytest.raises(AttributeError):
        load_data("iris").name = "other"  # type: ignore[misc]


def test_load_data_rejects_loaded_data() -> None:
    with pytest.raises(ValueError, match="already loaded"):
        load_data(load_data("iris"))


def test_image_shape_applies_to_one_tensor_or_two(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 12)), y=np.zeros((3, 8)))
    source = str(tmp_path / "x.npz")
    assert load_data(source, image_shape=(3, 4)).image_shape == (3, 4)  # x alone
    joined = load_data(source, image_shape=(4, 5))  # x and y side by side
    assert joined.image_shape == (4, 5)
    assert joined.source is not None
    again = load_data(**json.loads(json.dumps(joined.source)))
    assert again.image_shape == (4, 5)
    assert load_data(torch.zeros(3, 6), image_shape=(2, 3)).subset(torch.arange(2)).image_shape
    for wrong in ((4, 4), (8, 1)):
        with pytest.raises(ValueError, match=r"does not fit rows of 12 and 8 values"):
            load_data(source, image_shape=wrong)  # type: ignore[arg-type]
