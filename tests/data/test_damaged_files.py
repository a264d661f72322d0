"""Messages about damaged files: file, line, column, remedy."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ppl_lvm.data import load_data, readers

TABLE = np.arange(12.0).reshape(4, 3) / 8  # (4, 3), exact in float32


CSV_FAULTS = {
    "missing": ("a,b\n1,2\n3,\n", "line 3, column 'b': the value is missing"),
    "missing NA": ("a,b\n1,NA\n3,4\n", "line 2, column 'b': the value is missing"),
    "missing with spaces": ("a,b\n1,2\n+3, n/a \n", "line 3, column 'b': the value is missing"),
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
    "decimal marks": ("a;b\n1,5;2\n1.5;2\n", "all with decimal commas"),
    "decimal commas between commas": ('a,b\n"1,5",2\n', "'1,5' is not a number"),
    "grouped digits": ("a;b\n1.234,5;2\n", "'1.234,5' is not a number"),
    "hash in a row": ("a,b\n1,2\n#3,4\n", "line 3, column 'a': '#3' is not a number"),
    "comments only": ("# a\n# b\n", "has comments and no rows"),
    "spaces, short line": ("1 2 3\n4 5 6\n7 8\n", "'4 5 6' is not a number"),
    "open quote": ('a,b\n1,"2\n', "not well-formed CSV"),
    "text after a quote": ('a,b\n1,"2"0\n', "not well-formed CSV"),
    "short line after a quoted line break": ('a,b\n"1\n",2\n3\n', "line 4 has 1 fields"),
    "empty line in one column": ("a\n1\n\n3\n", "line 3 is empty, and rows follow"),
    "empty line after Windows line ends": ("a,b\r\n1,2\r\n\r\n3,4\r\n", "line 3 is empty"),
    "text in an old Macintosh file": ("a,b\r1,2\r3,red\r", "line 3, column 'b': 'red' is not"),
    "missing in the last of many lines": (
        "a\n" + "1\n" * 50_000 + "?\n",
        "line 50002, column 'a': the value is missing (1 in all)",
    ),
    "text in the last of many lines": (
        "a\n" + "1\n" * 50_000 + "x\n",
        "line 50002, column 'a': 'x' is not a number",
    ),
}


@pytest.mark.parametrize("fault", CSV_FAULTS)
def test_csv_reader_names_line_and_column_of_each_fault(
    tmp_path: Path, fault: str, written: Any
) -> None:
    text, message = CSV_FAULTS[fault]
    path = written(tmp_path / "f.csv", text)
    with pytest.raises(ValueError) as caught:
        load_data(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_csv_reader_rejects_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_data(tmp_path / "f.csv")


def _truncated(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


@pytest.mark.parametrize("threshold", [2**30, 16])
@pytest.mark.parametrize("keep", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["npy", "npz", "parquet"])
def test_readers_name_truncated_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, keep: float, threshold: int
) -> None:
    monkeypatch.setattr(readers, "MAP_ABOVE", threshold)
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
    ("write", "message"),
    [
        (_npy(np.array([[1, "x"], [2, None]], dtype=object)), "Only unpickling"),
        (_npy(np.array([["a", "b"]])), "holds text"),
        (_npy(np.float64(3.0)), "0-d"),
        (_npy(np.zeros((0, 3))), "no rows"),
        (_npy(np.zeros((3, 0))), "its rows have no values"),
        (_npy(np.zeros(3, complex)), "complex"),
        (_npy(np.zeros(3, "M8[s]")), "dates"),
        (_npy(np.zeros(3, [("a", float)])), "records"),
        (_npy(np.array([[1.0, np.nan]])), "row 1 (index 0), column 2 (index 1): the value is m"),
        (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
        (lambda path: path.write_bytes(b"hello world"), "not a complete NumPy file"),
    ],
)
def test_npy_reader_names_file_and_fault(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    write(tmp_path / "f.npy")
    with pytest.raises(ValueError) as caught:
        load_data(tmp_path / "f.npy")
    assert message in str(caught.value)
    assert "f.npy" in str(caught.value)


def test_npz_reader_rejects_objects_without_unpickling(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", x=np.array([[1], None], dtype=object))
    with pytest.raises(ValueError, match=r"f\.npz, x holds Python objects"):
        load_data(tmp_path / "f.npz")


def test_parquet_reader_names_text_and_missing_values(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1.0, None], "t": ["u", "v"]}).to_parquet(tmp_path / "f.parquet")
    with pytest.raises(ValueError, match=r"f\.parquet, column 't', row 1 \(index 0\): 'u' is not"):
        load_data(tmp_path / "f.parquet")
    with pytest.raises(ValueError, match=r"row 2 \(index 1\), column 'a': the value is missing"):
        load_data(tmp_path / "f.parquet", columns=["a"])


def test_missing_file_error_suggests_a_neighboring_file(tmp_path: Path, written: Any) -> None:
    written(tmp_path / "flowers.csv", "a\n1\n")
    with pytest.raises(FileNotFoundError, match=r"Did you mean flowers\.csv"):
        load_data(tmp_path / "flowes.csv")
    with pytest.raises(FileNotFoundError, match=r"Available: flowers\.csv\."):
        load_data(tmp_path / "zzz.npy")
    with pytest.raises(FileNotFoundError, match="There is no folder /nowhere/at either"):
        load_data("/nowhere/at/all.csv")


def test_readers_reject_unknown_extensions_and_folders(tmp_path: Path, written: Any) -> None:
    written(tmp_path / "f.xlsx", "x")
    with pytest.raises(ValueError, match=r"cannot read files ending in '\.xlsx'.*\.npz \(sev"):
        load_data(tmp_path / "f.xlsx")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        load_data(tmp_path / "d.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["aa"]}, "Did you mean a"),
        ({"columns": ["a", "a"]}, "names a column twice"),
        ({"columns": []}, "no column is left"),
        ({"columns": "a"}, "columns='a' is a str. Pass a list"),
        ({"columns": ["a"], "labels": "a"}, "be the labels too"),
        ({"labels": "zebra"}, "has no 'zebra'"),
        (
            {"missing": "drop"},
            "Pass one of 'error', 'keep'.",
        ),
    ],
)
def test_load_data_rejects_wrong_column_choices(
    tmp_path: Path, options: dict[str, Any], message: str, written: Any
) -> None:
    path = written(tmp_path / "f.csv", "a,b\n1,2\n")
    with pytest.raises(ValueError) as caught:
        load_data(path, **options)
    assert message in str(caught.value)


def test_missing_keep_passes_missing_values_as_nan(tmp_path: Path, written: Any) -> None:
    path = written(tmp_path / "f.csv", "a,b\n1,?\n,4\n")
    (x,) = load_data(path, missing="keep").tensors
    assert torch.equal(x.isnan(), torch.tensor([[False, True], [True, False]]))
    with pytest.raises(ValueError, match="not a finite number"):
        load_data(np.array([[np.nan, np.inf]]), missing="keep")
    masked = np.ma.masked_array([[1.0, 2.0]], mask=[[False, True]])
    assert load_data(masked, missing="keep").tensors[0].isnan().tolist() == [[False, True]]
    with pytest.raises(ValueError, match=r"column 2 .* missing"):
        load_data(masked)


def test_missing_label_error_names_its_line_or_row(tmp_path: Path, written: Any) -> None:
    path = written(tmp_path / "f.csv", "a,k\n1,u\n2,\n")
    with pytest.raises(ValueError, match="line 3, column 'k': the label is missing"):
        load_data(path, labels="k")
    frame = pd.DataFrame({"a": [1, 2], "k": ["u", None]})
    with pytest.raises(ValueError, match=r"label of row 2 \(index 1\) is missing"):
        load_data(frame, labels="k")


def _zip_bomb(path: Path) -> None:
    """4 GB by its directory; the content is short."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY" + bytes(1000))
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02") + 24  # uncompressed size, in the central directory
    path.write_bytes(content[:at] + (2**32 - 2).to_bytes(4, "little") + content[at + 4 :])


def _true_zip_bomb(path: Path) -> None:
    np.savez_compressed(path, x=np.zeros((2**22, 1)))


def _repeated_number(path: Path) -> None:
    pd.DataFrame({"a": np.zeros(4_000_000)}).to_parquet(path)


def _repeated_text(path: Path) -> None:
    texts = pd.Categorical.from_codes(np.zeros(1000, int), ["x" * 100_000])
    pd.DataFrame({"a": np.zeros(1000), "b": texts.astype(object)}).to_parquet(path)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("declared.npz", _zip_bomb),
        ("zeros.npz", _true_zip_bomb),
        ("number.parquet", _repeated_number),
        ("text.parquet", _repeated_text),
    ],
)
def test_small_file_of_a_large_array_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[Path], None]
) -> None:
    make(tmp_path / name)
    monkeypatch.setattr(readers, "MOST_BYTES", 2**24)
    assert (tmp_path / name).stat().st_size < 2**17
    with pytest.raises(ValueError, match=f"{name} has .* bytes, and its arrays would take"):
        load_data(tmp_path / name)


def test_compressed_file_of_an_ordinary_array_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((10_000, 2)))
    pd.DataFrame({"a": np.zeros(10_000), "b": ["x"] * 10_000}).to_parquet(tmp_path / "x.parquet")
    assert len(load_data(tmp_path / "x.npz")) == 10_000
    assert len(load_data(tmp_path / "x.parquet", labels="b")) == 10_000
