"""Readers of all file formats on intact files."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ppl_lvm.cli.options import DataOption
from ppl_lvm.data import load, load_data, readers

TABLE = np.arange(12.0).reshape(4, 3) / 8  # (4, 3), exact in float32


def test_help_texts_name_every_format() -> None:
    (option,) = DataOption.__metadata__  # type: ignore[attr-defined]
    for suffix in readers.READERS:
        assert suffix in option.help
        assert suffix in str(load.__doc__)
        assert suffix in str(readers.__doc__)


def test_csv_reader_handles_header_and_text_labels(tmp_path: Path, same: Any, written: Any) -> None:
    path = written(tmp_path / "f.csv", "a,kind,b\n1,x,2\n3,y,4\n5,x,6\n\n")
    data = load_data(str(path), labels="kind")
    same(data, [[1, 2], [3, 4], [5, 6]])
    assert data.columns == ["a", "b"]
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 0]
    assert data.label_names == ["x", "y"]
    assert data.locate(1, 1) == f"{path}, line 3, column 'b'"
    assert data.name == "f.csv"


def test_csv_reader_sorts_integer_labels_as_numbers(tmp_path: Path, written: Any) -> None:
    path = written(tmp_path / "f.csv", "a,k\n1,10\n2,9\n3,10\n")
    data = load_data(path, labels="k")
    assert data.label_names == ["9", "10"]


def test_csv_reader_numbers_columns_without_header(tmp_path: Path, same: Any, written: Any) -> None:
    path = written(tmp_path / "f.csv", "1.5,2\n3,4\n")
    data = load_data(path)
    same(data, [[1.5, 2], [3, 4]])
    assert data.columns is None
    assert data.locate(1, 1) == f"{path}, line 2, column 2 (index 1)"
    assert load_data(path, columns=[1]).locate(0, 0).endswith("line 1, column 2 (index 1)")


def test_csv_reader_rejects_ambiguous_first_line(tmp_path: Path, written: Any) -> None:
    path = written(tmp_path / "f.csv", "0,1\n3,4\n")
    with pytest.raises(ValueError, match="header=True or header=False"):
        load_data(path)
    assert len(load_data(path, header=True)) == 1
    assert len(load_data(path, header=False)) == 2


def test_csv_reader_counts_lines_like_an_editor(tmp_path: Path, written: Any) -> None:
    path = written(tmp_path / "f.csv", 'a,t\n1,"two\nlines"\n2,u\n')
    assert load_data(path, columns=["a"]).locate(1, 0).startswith(f"{path}, line 4")


def test_csv_reader_accepts_every_spelling_of_numbers(
    tmp_path: Path, same: Any, written: Any
) -> None:
    """pyarrow rejects some of these, so that the Python reader takes over."""
    path = written(tmp_path / "f.csv", '\ufeffa,b\n 1,+2\n1000,1e-3\r\n"5",.5\n\n\n')
    same(load_data(path), [[1, 2], [1000, 0.001], [5, 0.5]])
    same(load_data(path, columns=["b"]), [[2], [0.001], [0.5]])


def test_csv_reader_keeps_rows_and_lines_of_a_long_file(tmp_path: Path, same: Any) -> None:
    values = np.arange(20_000.0)
    path = tmp_path / "f.csv"
    pd.DataFrame({"a": values, "k": values.astype(int) % 3}).to_csv(path, index=False)
    data = load_data(path, labels="k")
    same(data, values[:, None])
    assert data.labels is not None
    assert torch.equal(data.labels, torch.arange(20_000) % 3)
    assert "line 19002" in data.locate(19_000)


DIALECTS = {  # all of the values [[1.5, 2], [-3, 0.25]]
    "commas": ("a,b\n1.5,2\n-3,.25\n", ["a", "b"]),
    "semicolons": ("a;b\n1.5;2\n-3;.25\n", ["a", "b"]),
    "decimal commas": ("a;b\n1,5;2\n-3;0,25\n", ["a", "b"]),
    "decimal commas without header": ("1,5;2,0\n-3,0;0,25\n", None),
    "commas in names": ("a, cm;b, cm\n1,5;2\n-3;0,25\n", ["a, cm", "b, cm"]),
    "semicolon in a name": ("a;1,b;2\n1.5,2\n-3,.25\n", ["a;1", "b;2"]),
    "tabs": ("a b\tb\n1,5\t2\n-3\t,25\n", ["a b", "b"]),
    "spaces": ("a b\n1.5   2\n -3 .25 \n", ["a", "b"]),
    "savetxt": ("1.5e+00 2.0e+00\n-3.0e+00 2.5e-01\n", None),
    "savetxt with header": ("# a,b\n1.5,2\n-3,.25\n", ["a", "b"]),
    "comments": ("# made, by, hand\n#\na,b\n1.5,2\n# half\n-3,.25\n# end\n", ["a", "b"]),
    "hash as a name": ("#,b\n1.5,2\n-3,.25\n", ["#", "b"]),
    "quotes": ('"a";"b"\r\n"1,5";"2"\r\n-3;"0,25"\r\n', ["a", "b"]),
}


@pytest.mark.parametrize("kind", DIALECTS)
def test_csv_reader_infers_separator_decimal_mark_and_comments(
    tmp_path: Path, kind: str, same: Any, written: Any
) -> None:
    text, names = DIALECTS[kind]
    data = load_data(written(tmp_path / "f.txt", text))
    same(data, [[1.5, 2], [-3, 0.25]])
    assert data.columns == names
    assert data.locate(1, 0).startswith(f"{tmp_path / 'f.txt'}, line ")


def test_csv_reader_reads_one_column_and_names_with_spaces(
    tmp_path: Path, same: Any, written: Any
) -> None:
    same(load_data(written(tmp_path / "f.csv", "sepal length\n5.1\n4.9\n")), [[5.1], [4.9]])
    same(load_data(written(tmp_path / "g.csv", "# mm\n5.1\n4.9\n")), [[5.1], [4.9]])


def test_csv_reader_keeps_labels_that_begin_with_a_hash(tmp_path: Path, written: Any) -> None:
    data = load_data(written(tmp_path / "f.csv", "tag,x\n#a,1\n#b,2\n"), labels="tag")
    assert data.label_names == ["#a", "#b"]
    path = written(tmp_path / "g.csv", "x;y\n1,5;2,5\n1,0;3,5\n")
    labels = load_data(path, labels="y").labels
    assert labels is not None
    assert labels.tolist() == [2.5, 3.5]


def test_npy_reader_chooses_columns_by_index(tmp_path: Path, same: Any) -> None:
    np.save(tmp_path / "f.npy", TABLE)
    same(load_data(tmp_path / "f.npy"), TABLE)
    data = load_data(tmp_path / "f.npy", columns=[2, 0], labels=1)
    same(data, TABLE[:, [2, 0]])
    assert data.labels is not None
    assert torch.equal(data.labels, torch.from_numpy(TABLE[:, 1]).float())
    assert data.locate(2, 0).endswith("row 3 (index 2), column 3 (index 2)")


@pytest.mark.parametrize("kind", ["i8", "u2", "?", "f2", ">f8", "f4"])
def test_npy_reader_converts_any_number_type_to_the_default_float(
    tmp_path: Path, kind: str, same: Any
) -> None:
    values = np.array([[0, 1], [1, 0]]).astype(kind)
    np.save(tmp_path / "f.npy", values)
    same(load_data(tmp_path / "f.npy"), values.astype(float))


def test_load_data_respects_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    assert load_data(TABLE.astype(np.float32)).tensors[0].dtype == torch.float64


def test_npz_reader_chooses_arrays_by_name(tmp_path: Path) -> None:
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


def test_parquet_and_frame_readers_agree(tmp_path: Path, same: Any) -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "k": ["u", "v", "u"], "b": [True, False, True]})
    frame.to_parquet(tmp_path / "f.parquet")
    for source in (tmp_path / "f.parquet", frame):
        data = load_data(source, labels="k")
        same(data, [[1, 1], [2, 0], [3, 1]])
        assert data.columns == ["a", "b"]
        assert data.label_names == ["u", "v"]
        assert data.locate(1, 1).endswith("row 2 (index 1), column 'b'")


def test_npy_reader_memory_maps_large_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: Any
) -> None:
    monkeypatch.setattr(readers, "MAP_ABOVE", 16)
    path = tmp_path / "f.npy"
    np.save(path, TABLE)
    data = load_data(path, columns=[2, 0])
    same(data, TABLE[:, [2, 0]])
    left, right = data.split(1, seed=0)
    assert len(left) == 3
    assert torch.equal(
        torch.cat([left.tensors[0], right.tensors[0]]).sort(0).values,
        torch.tensor(TABLE[:, [2, 0]]).float(),
    )
    data.batch(torch.arange(4))[0].zero_()
    assert np.array_equal(np.load(path), TABLE)  # no write reaches the file
    same(data, TABLE[:, [2, 0]])


def test_mapped_store_reads_only_the_rows_of_a_batch(tmp_path: Path) -> None:
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
    path.unlink()  # keeps the file out of copies of the temporary folder


def test_mapped_store_validates_rows_at_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAP_ABOVE", 16)
    bad = TABLE.copy()
    bad[2, 1] = np.inf
    np.save(tmp_path / "f.npy", bad)
    data = load_data(tmp_path / "f.npy")
    data.batch(torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match=r"row 3 \(index 2\), column 2 \(index 1\)"):
        data.batch(torch.tensor([3, 2]))


def test_fingerprint_changes_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.npy"
    for threshold in (2**30, 16):  # in memory, mapped
        monkeypatch.setattr(readers, "MAP_ABOVE", threshold)
        np.save(path, TABLE)
        before = load_data(path).fingerprint()
        assert load_data(path).fingerprint() == before
        np.save(path, TABLE + 1)
        assert load_data(path).fingerprint() != before
