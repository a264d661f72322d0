"""Data from every kind of source, and every kind of fault with its place and remedy."""

import json
from collections.abc import Callable
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

from ppl_lvm.data import Data, files, load_data

TABLE = np.arange(12.0).reshape(4, 3) / 8  # (4, 3), exact in float32


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _same(data: Data, expected: Any) -> None:
    """The one tensor of `data` equals `expected`, whole and row by row."""
    wanted = torch.as_tensor(np.array(expected), dtype=torch.get_default_dtype())
    index = torch.arange(len(wanted)).flip(0)
    (batch,) = data.batch(index)
    assert len(data) == len(wanted)
    assert batch.dtype == torch.get_default_dtype()
    assert torch.equal(batch, wanted.flip(0))


# Named sets


def test_iris_is_fishers_with_species_kept_apart() -> None:
    data = load_data("iris")
    (x,) = data.tensors
    assert x.shape == (150, 4)
    assert x.dtype == torch.float32
    assert torch.allclose(x[0], torch.tensor([5.1, 3.5, 1.4, 0.2]))
    assert data.columns is not None
    assert data.columns[2] == "petal length (cm)"
    assert data.label_names == ["setosa", "versicolor", "virginica"]
    assert data.labels is not None
    assert data.labels.bincount().tolist() == [50, 50, 50]


def test_digits_binarise_at_the_threshold() -> None:
    grey, ink = load_data("digits"), load_data("digits(binarize=8)")
    assert grey.tensors[0].shape == (1797, 64)
    assert grey.tensors[0].max() == 16
    assert torch.equal(ink.tensors[0], (grey.tensors[0] >= 8).float())
    assert not torch.equal(ink.tensors[0], (grey.tensors[0] > 8).float())
    assert ink.image_shape == (8, 8)
    assert "row 1 (index 0), column 'pixel_1_2'" in ink.locate(0, 10)


@pytest.mark.parametrize(
    ("name", "shape", "classes"), [("wine", (178, 13), 3), ("breast_cancer", (569, 30), 2)]
)
def test_shipped_tables(name: str, shape: tuple[int, int], classes: int) -> None:
    data = load_data(name)
    assert data.tensors[0].shape == shape
    assert data.label_names is not None
    assert len(data.label_names) == classes


@pytest.mark.parametrize("name", ["moons", "blobs", "swiss_roll", "pinwheel"])
def test_generators_repeat_under_one_seed_and_differ_under_another(name: str) -> None:
    first, again, other = (load_data(f"{name}(n=30, noise=0.2, seed={s})") for s in (1, 1, 2))
    assert len(first) == 30
    assert torch.equal(first.tensors[0], again.tensors[0])
    assert not torch.equal(first.tensors[0], other.tensors[0])
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_pinwheel_without_noise_lies_on_its_arms() -> None:
    data = load_data("pinwheel(n=40, components=4, noise=0)")
    x, k = data.tensors[0].double(), data.labels
    assert k is not None
    r = x.norm(dim=1)
    angle = 2 * torch.pi * k / 4 + 0.25 * r.exp()
    arm = torch.stack([r * angle.cos(), r * angle.sin()], dim=1)
    assert torch.allclose(x, arm, atol=1e-5)


def test_swiss_roll_labels_are_positions_without_names() -> None:
    data = load_data("swiss_roll(n=20)")
    assert data.label_names is None
    assert data.labels is not None
    assert data.labels.dtype == torch.float32


def test_columns_of_a_named_set() -> None:
    data = load_data("iris", columns=["petal width (cm)", "petal length (cm)"])
    assert torch.equal(data.tensors[0], load_data("iris").tensors[0][:, [3, 2]])
    assert data.labels is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("irsi", "did you mean 'iris'"),
        ("elephants", "there are iris, digits"),
        ("digits(binarise=8)", "did you mean 'binarize'"),
        ("digits(binarize=99)", "at most 16"),
        ("iris(n=3)", "takes no arguments"),
        ("moons(500)", "name each argument"),
        ("moons(n=-1)", "n=-1 must be a whole number, 1 or more"),
        ("moons(n=2.5)", "n=2.5 must be a whole number"),
        ("moons(noise=-0.1)", "noise=-0.1 must be a number, 0 or more"),
        ("moons(n=__import__('os').getpid())", "must be a plain number"),
        ("moons(**{'n': 3})", "name each argument"),
        ("moons(n=3", "not of the form"),
    ],
)
def test_named_set_faults(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_data(text)
    assert said in str(caught.value)


# Files, read right


def test_csv_with_header_and_text_labels(tmp_path: Path) -> None:
    path = _write(tmp_path / "f.csv", "a,kind,b\n1,x,2\n3,y,4\n5,x,6\n\n")
    data = load_data(str(path), labels="kind")
    _same(data, [[1, 2], [3, 4], [5, 6]])
    assert data.columns == ["a", "b"]
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 0]
    assert data.label_names == ["x", "y"]
    assert data.locate(1, 1) == f"{path}, line 3, column 'b'"
    assert data.name == "f.csv"


def test_csv_whole_number_labels_sort_as_numbers(tmp_path: Path) -> None:
    path = _write(tmp_path / "f.csv", "a,k\n1,10\n2,9\n3,10\n")
    data = load_data(path, labels="k")
    assert data.label_names == ["9", "10"]


def test_csv_without_header_has_numbered_columns(tmp_path: Path) -> None:
    path = _write(tmp_path / "f.csv", "1.5,2\n3,4\n")
    data = load_data(path)
    _same(data, [[1.5, 2], [3, 4]])
    assert data.columns is None
    assert data.locate(1, 1) == f"{path}, line 2, column 2 (index 1)"
    assert load_data(path, columns=[1]).locate(0, 0).endswith("line 1, column 2 (index 1)")


def test_csv_of_column_numbers_must_be_told(tmp_path: Path) -> None:
    path = _write(tmp_path / "f.csv", "0,1\n3,4\n")
    with pytest.raises(ValueError, match="header=True or header=False"):
        load_data(path)
    assert len(load_data(path, header=True)) == 1
    assert len(load_data(path, header=False)) == 2


def test_csv_lines_count_what_the_editor_shows(tmp_path: Path) -> None:
    path = _write(tmp_path / "f.csv", 'a,t\n1,"two\nlines"\n2,u\n')
    assert load_data(path, columns=["a"]).locate(1, 0).startswith(f"{path}, line 4")


def test_csv_longer_than_a_chunk(tmp_path: Path) -> None:
    values = np.arange(20_000.0)
    path = tmp_path / "f.csv"
    pd.DataFrame({"a": values, "k": values.astype(int) % 3}).to_csv(path, index=False)
    data = load_data(path, labels="k")
    _same(data, values[:, None])
    assert data.labels is not None
    assert torch.equal(data.labels, torch.arange(20_000) % 3)
    assert "line 19002" in data.locate(19_000)


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", TABLE)
    _same(load_data(tmp_path / "f.npy"), TABLE)
    data = load_data(tmp_path / "f.npy", columns=[2, 0], labels=1)
    _same(data, TABLE[:, [2, 0]])
    assert data.labels is not None
    assert torch.equal(data.labels, torch.from_numpy(TABLE[:, 1]).float())
    assert data.locate(2, 0).endswith("row 3 (index 2), column 3 (index 2)")


@pytest.mark.parametrize("kind", ["i8", "u2", "?", "f2", ">f8", "f4"])
def test_npy_of_any_number_type_becomes_the_default_float(tmp_path: Path, kind: str) -> None:
    values = np.array([[0, 1], [1, 0]]).astype(kind)
    np.save(tmp_path / "f.npy", values)
    _same(load_data(tmp_path / "f.npy"), values.astype(float))


def test_default_dtype_is_respected() -> None:
    torch.set_default_dtype(torch.float64)
    assert load_data(TABLE.astype(np.float32)).tensors[0].dtype == torch.float64


def test_npz_arrays_are_chosen_by_name(tmp_path: Path) -> None:
    y = np.array(["b", "a", "b", "b"])
    np.savez(tmp_path / "f.npz", x=TABLE, y=y, test=TABLE[:2], w=TABLE[:, 0])
    data = load_data(tmp_path / "f.npz", columns=["w", "x"], labels="y")
    w, x = data.batch(torch.tensor([2, 0]))
    assert torch.equal(w, torch.tensor(TABLE[[2, 0], 0]).float())
    assert torch.equal(x, torch.tensor(TABLE[[2, 0]]).float())
    assert data.label_names == ["a", "b"]
    assert data.locate(0, 2, part=1).endswith("x, row 1 (index 0), column 3 (index 2)")
    with pytest.raises(ValueError, match=r"test \(2, 3\)"):
        load_data(tmp_path / "f.npz", columns=["x", "test"])


def test_parquet_and_frames(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "k": ["u", "v", "u"], "b": [True, False, True]})
    frame.to_parquet(tmp_path / "f.parquet")
    for source in (tmp_path / "f.parquet", frame):
        data = load_data(source, labels="k")
        _same(data, [[1, 1], [2, 0], [3, 1]])
        assert data.columns == ["a", "b"]
        assert data.label_names == ["u", "v"]
        assert data.locate(1, 1).endswith("row 2 (index 1), column 'b'")


def test_large_npy_stays_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAP_ABOVE", 16)
    path = tmp_path / "f.npy"
    np.save(path, TABLE)
    data = load_data(path, columns=[2, 0])
    _same(data, TABLE[:, [2, 0]])
    left, right = data.split(1, seed=0)
    assert len(left) == 3
    assert torch.equal(
        torch.cat([left.tensors[0], right.tensors[0]]).sort(0).values,
        torch.tensor(TABLE[:, [2, 0]]).float(),
    )
    data.batch(torch.arange(4))[0].zero_()
    assert np.array_equal(np.load(path), TABLE)  # no write reaches the file
    _same(data, TABLE[:, [2, 0]])


def test_a_batch_of_a_mapped_file_reads_its_rows_only(tmp_path: Path) -> None:
    """A sparse file of 64 GiB, more than there is memory."""
    path = tmp_path / "huge.npy"
    rows = np.lib.format.open_memmap(path, "w+", np.float64, (2**26, 128))
    rows[5], rows[2**26 - 1] = 5.0, 7.0
    rows.flush()
    del rows
    data = load_data(path)
    (x,) = data.batch(torch.tensor([5, 2**26 - 1, 77]))
    assert x[:, 0].tolist() == [5.0, 7.0, 0.0]
    assert data.fingerprint() == load_data(path).fingerprint()
    assert "row 78 (index 77)" in data.locate(77)
    path.unlink()  # no copy of the temporary folder should try to take it along


def test_mapped_rows_are_checked_when_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAP_ABOVE", 16)
    bad = TABLE.copy()
    bad[2, 1] = np.inf
    np.save(tmp_path / "f.npy", bad)
    data = load_data(tmp_path / "f.npy")
    data.batch(torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match=r"row 3 \(index 2\), column 2 \(index 1\)"):
        data.batch(torch.tensor([3, 2]))


def test_fingerprint_notices_a_changed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.npy"
    for threshold in (2**30, 16):  # in memory, mapped
        monkeypatch.setattr(files, "MAP_ABOVE", threshold)
        np.save(path, TABLE)
        before = load_data(path).fingerprint()
        assert load_data(path).fingerprint() == before
        np.save(path, TABLE + 1)
        assert load_data(path).fingerprint() != before


# Files, at fault

CSV_FAULTS = {
    "missing": ("a,b\n1,2\n3,\n", "line 3, column 'b': the value is missing"),
    "missing NA": ("a,b\n1,NA\n3,4\n", "line 2, column 'b': the value is missing"),
    "text": ("a,b\n1,2\n3,red\n", "line 3, column 'b': 'red' is not a number"),
    "infinity": ("a,b\n1,2\n-inf,4\n", "line 3, column 'a': -inf is not a finite number"),
    "overflow": ("a,b\n1,2\n1e300,4\n", "1e+300 is too large for torch.float32"),
    "short line": ("a,b\n1,2\n3\n", "line 3 has 1 fields, the first line has 2"),
    "long line": ("a,b\n1,2,3\n", "line 2 has 3 fields"),
    "empty": ("", "is empty (0 bytes)"),
    "only header": ("a,b\n", "has a header and no rows"),
    "empty first line": ("\na,b\n1,2\n", "begins with an empty line"),
    "empty line": ("a,b\n1,2\n\n3,4\n", "line 3 is empty, and rows follow"),
    "duplicate": ("a,b,a\n1,2,3\n", "columns 1 and 3 are both called 'a'"),
    "index": (",a,b\n0,1,2\n", "column 1 has no name"),
    "semicolons": ("a;b\n1;2\n", "separated by ';'"),
    "open quote": ('a,b\n1,"2\n', "not well-formed CSV"),
}


@pytest.mark.parametrize("fault", CSV_FAULTS)
def test_csv_faults(tmp_path: Path, fault: str) -> None:
    text, said = CSV_FAULTS[fault]
    path = _write(tmp_path / "f.csv", text)
    with pytest.raises(ValueError) as caught:
        load_data(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_csv_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_data(tmp_path / "f.csv")


def _truncated(path: Path, keep: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])


@pytest.mark.parametrize("threshold", [2**30, 16])
@pytest.mark.parametrize("keep", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["npy", "npz", "parquet"])
def test_truncated_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, keep: float, threshold: int
) -> None:
    monkeypatch.setattr(files, "MAP_ABOVE", threshold)
    path = tmp_path / f"f.{kind}"
    table = np.random.default_rng(0).normal(size=(100, 3))
    if kind == "npy":
        np.save(path, table)
    elif kind == "npz":
        np.savez_compressed(path, table)
    else:
        pd.DataFrame(table, columns=["a", "b", "c"]).to_parquet(path)
    _truncated(path, keep)
    with pytest.raises(ValueError) as caught:
        load_data(path)
    assert str(path) in str(caught.value)


def _npy(array: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, array)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (_npy(np.array([[1, "x"], [2, None]], dtype=object)), "only unpickling"),
        (_npy(np.array([["a", "b"]])), "holds text"),
        (_npy(np.float64(3.0)), "0-d"),
        (_npy(np.zeros((0, 3))), "no rows"),
        (_npy(np.zeros((3, 0))), "without a single value"),
        (_npy(np.zeros(3, complex)), "complex"),
        (_npy(np.zeros(3, "M8[s]")), "dates"),
        (_npy(np.zeros(3, [("a", float)])), "records"),
        (_npy(np.array([[1.0, np.nan]])), "row 1 (index 0), column 2 (index 1): the value is m"),
        (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
        (lambda path: path.write_bytes(b"hello world"), "not a complete NumPy file"),
    ],
)
def test_npy_faults(tmp_path: Path, write: Callable[[Path], None], said: str) -> None:
    write(tmp_path / "f.npy")
    with pytest.raises(ValueError) as caught:
        load_data(tmp_path / "f.npy")
    assert said in str(caught.value)
    assert "f.npy" in str(caught.value)


def test_npz_with_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", x=np.array([[1], None], dtype=object))
    with pytest.raises(ValueError, match=r"f\.npz, x holds Python objects"):
        load_data(tmp_path / "f.npz")


def test_parquet_text_and_gaps_are_named(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1.0, None], "t": ["u", "v"]}).to_parquet(tmp_path / "f.parquet")
    with pytest.raises(ValueError, match=r"f\.parquet, column 't', row 1 \(index 0\): 'u' is not"):
        load_data(tmp_path / "f.parquet")
    with pytest.raises(ValueError, match=r"row 2 \(index 1\), column 'a': the value is missing"):
        load_data(tmp_path / "f.parquet", columns=["a"])


def test_file_not_found_offers_its_neighbour(tmp_path: Path) -> None:
    _write(tmp_path / "flowers.csv", "a\n1\n")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'flowers\.csv'"):
        load_data(tmp_path / "flowes.csv")
    with pytest.raises(FileNotFoundError, match=r"there are flowers\.csv\."):
        load_data(tmp_path / "zzz.npy")
    with pytest.raises(FileNotFoundError, match="nor is there a folder"):
        load_data("/nowhere/at/all.csv")


def test_unknown_extensions_and_folders(tmp_path: Path) -> None:
    _write(tmp_path / "f.xlsx", "x")
    with pytest.raises(ValueError, match=r"'\.xlsx' are not read, only \.csv"):
        load_data(tmp_path / "f.xlsx")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        load_data(tmp_path / "d.csv")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"columns": ["aa"]}, "did you mean 'a'"),
        ({"columns": ["a", "a"]}, "names a column twice"),
        ({"columns": []}, "no column is left"),
        ({"columns": "a"}, "columns=['a']"),
        ({"columns": ["a"], "labels": "a"}, "be the labels too"),
        ({"labels": "zebra"}, "has no 'zebra'"),
        ({"missing": "drop"}, "there are error, keep"),
    ],
)
def test_wrong_choices_of_columns(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    path = _write(tmp_path / "f.csv", "a,b\n1,2\n")
    with pytest.raises(ValueError) as caught:
        load_data(path, **options)
    assert said in str(caught.value)


def test_missing_values_are_kept_on_request(tmp_path: Path) -> None:
    path = _write(tmp_path / "f.csv", "a,b\n1,?\n,4\n")
    (x,) = load_data(path, missing="keep").tensors
    assert torch.equal(x.isnan(), torch.tensor([[False, True], [True, False]]))
    with pytest.raises(ValueError, match="not a finite number"):
        load_data(np.array([[np.nan, np.inf]]), missing="keep")
    masked = np.ma.masked_array([[1.0, 2.0]], mask=[[False, True]])
    assert load_data(masked, missing="keep").tensors[0].isnan().tolist() == [[False, True]]
    with pytest.raises(ValueError, match=r"column 2 .* missing"):
        load_data(masked)


def test_a_missing_label_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "f.csv", "a,k\n1,u\n2,\n")
    with pytest.raises(ValueError, match="line 3, column 'k': the label is missing"):
        load_data(path, labels="k")
    frame = pd.DataFrame({"a": [1, 2], "k": ["u", None]})
    with pytest.raises(ValueError, match=r"label of row 2 \(index 1\) is missing"):
        load_data(frame, labels="k")


# Objects in memory


def test_arrays_and_tensors() -> None:
    _same(load_data(TABLE), TABLE)
    _same(load_data(torch.tensor(TABLE)), TABLE)
    _same(load_data(TABLE[::-1]), TABLE[::-1])
    _same(load_data(TABLE[:, 0]), TABLE[:, 0])


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


def test_a_loader_gives_dataset_collation_and_batch_size() -> None:
    def double(items: list[Any]) -> torch.Tensor:
        return 2 * torch.stack([torch.tensor(x, dtype=torch.float64) for x, _ in items])

    data = load_data(DataLoader(Squares(), batch_size=3, shuffle=True, collate_fn=double))
    assert data.batch_size == 3
    _same(data, [[2 * n, 2 * n**2] for n in range(5)])
    tensors = TensorDataset(torch.tensor(TABLE), torch.arange(4))
    data = load_data(DataLoader(tensors, batch_size=2), labels=1)
    _same(data, TABLE)
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


# Split and fingerprint


def test_split_parts_every_row_once_and_keeps_its_label_and_place() -> None:
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


def test_split_depends_on_its_seed_alone() -> None:
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
def test_split_refuses_an_empty_side(held_out: Any) -> None:
    with pytest.raises(ValueError, match="held_out="):
        load_data("iris").split(held_out, seed=0)


def test_data_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        load_data("iris").name = "other"  # type: ignore[misc]


def test_loading_data_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="loaded already"):
        load_data(load_data("iris"))


def test_rows_are_said_to_be_pictures(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 12)), y=np.zeros((3, 8)))
    source = str(tmp_path / "x.npz")
    assert load_data(source, image_shape=(3, 4)).image_shape == (3, 4)  # x alone
    whole = load_data(source, image_shape=(4, 5))  # x and y side by side
    assert whole.image_shape == (4, 5)
    assert whole.source is not None
    again = load_data(**json.loads(json.dumps(whole.source)))
    assert again.image_shape == (4, 5)
    assert load_data(torch.zeros(3, 6), image_shape=(2, 3)).subset(torch.arange(2)).image_shape
    for wrong in ((4, 4), (12,), (8, 1)):
        with pytest.raises(ValueError, match=r"does not suit rows of 12 and 8 numbers"):
            load_data(source, image_shape=wrong)  # type: ignore[arg-type]
