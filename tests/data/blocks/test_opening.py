"""Folders and patterns of files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from ppl_lvm.core.types import Array
from ppl_lvm.data import load_data
from ppl_lvm.data.blocks.files import FORMATS
from ppl_lvm.data.blocks.opening import _Scan
from ppl_lvm.data.blocks.store import BlockStore
from ppl_lvm.data.selection import initialization_rows, sample_index
from ppl_lvm.data.stores import MemoryStore

Write = Callable[[str], Path]


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "npy", "csv"])
def test_files_of_every_format_hold_equal_rows(
    write: Write, table: Array, suffix: str, on_disk: None
) -> None:
    data = load_data(write(suffix), shuffle_buffer=150)
    assert isinstance(data.store, BlockStore)
    assert torch.equal(data.tensors[0], torch.from_numpy(table))
    index = torch.tensor([999, 0, -1, 431, 431])
    assert torch.equal(data.batch(index)[0], torch.from_numpy(table)[index])
    assert "part-2." in data.locate(431)
    assert "row 32 (index 31)" in data.locate(431)


def test_few_files_are_read_into_memory_with_equal_names(write: Write, table: Array) -> None:
    data = load_data(write("parquet"))
    assert isinstance(data.store, MemoryStore)
    assert torch.equal(data.tensors[0], torch.from_numpy(table))
    assert data.columns == ["a", "b", "c"]
    assert data.locate(431, 1).endswith(
        "part-2.parquet, row group 0, row 32 (index 31), column 'b'"
    )


def test_folder_of_files_is_their_pattern(write: Write, tmp_path: Path, on_disk: None) -> None:
    write("parquet")
    (tmp_path / "_SUCCESS").touch()
    data = load_data(tmp_path, columns=["b", "a"])
    assert (len(data), data.columns, data.name) == (1000, ["b", "a"], tmp_path.name)


def test_labels_weights_and_exposures_are_columns_of_the_files(
    write: Write, table: Array, on_disk: None
) -> None:
    pattern = write("parquet")
    data = load_data(pattern, columns=["b"], weights="a")
    assert data.weights is not None
    assert torch.equal(data.weights, torch.arange(1000.0, dtype=torch.float64))
    assert load_data(pattern, labels="a").labels is not None
    exposed = data.with_exposure(np.arange(1, 1001))
    train, held_out = exposed.split(0.3, seed=0)
    for part in (train, held_out):
        x, exposure = part.batch(torch.tensor([0, 5]))
        assert part.weights is not None
        assert torch.equal(exposure - 1, part.weights[[0, 5]].float())
        assert torch.equal(x[:, 0], torch.from_numpy(table[:, 1])[(exposure - 1).long()])


def test_sample_is_uniform_and_read_from_memory(
    write: Write, table: Array, tmp_path: Path, on_disk: None
) -> None:
    data = load_data(write("parquet"))
    index = sample_index(data, 50, torch.Generator().manual_seed(0))
    for path in tmp_path.iterdir():
        path.unlink()
    assert torch.equal(data.batch(index)[0], torch.from_numpy(table)[index])
    scan = _Scan((), None, None, "error", 0)  # type: ignore[arg-type]
    hits = np.zeros(40)
    for seed in range(400):
        scan._rng, scan._sampled, scan._bar, scan._waiting = np.random.default_rng(seed), [], 1.0, 0
        scan._sizes = []
        for first in range(0, 2000, 50):
            scan._sample(np.arange(first, first + 50.0)[:, None])
            scan._sizes.append(50)
        rows, values = scan.sample()
        assert np.array_equal(rows, values[:, 0])
        assert len(np.unique(rows)) == 100
        hits += np.bincount(rows // 50, minlength=40)
    assert np.abs(hits / 400 - 2.5).max() < 5 * np.sqrt(2.5 * 0.975 * 0.95 / 400)
    assert len(initialization_rows(load_data(write("npy")))[0]) == 1000


def part(**columns: Any) -> Callable[[Path], None]:
    values = {name: np.zeros(200, np.float32) for name in "abc"} | columns
    values = {name: column for name, column in values.items() if column is not None}
    return lambda path: parquet.write_table(pa.table(values), path, row_group_size=60)


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(range(1, 191)) * 10
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (part(b=None), "part-4.parquet has no column 'b', which .*part-0.parquet has"),
        (part(b=np.full(200, "x")), "part-4.parquet, column 'b': its type is string, and floating"),
        (part(b=np.zeros(200, np.int64)), "part-4.parquet, column 'b': its type is integer"),
        (part(d=np.zeros(200)), "part-4.parquet has a column 'd', which"),
        (part(c=np.where(np.arange(200) == 130, np.nan, 0)), "part-4.*row group 2, row 131 .*'c'"),
        (part(c=np.where(np.arange(200) == 130, np.inf, 0)), "row group 2, .*inf is not a finite"),
        (part(c=pa.array([None] + [0.0] * 199)), "row group 0, row 1 .*the value is missing"),
        (lambda path: path.write_bytes(b""), r"part-4.parquet is empty \(0 bytes\)"),
        (lambda path: path.write_text("text"), "part-4.parquet cannot be read as Parquet"),
        (damaged, "part-4.parquet, row group 0 cannot be read as Parquet"),
        (
            lambda path: parquet.write_table(pa.table({n: np.zeros(0, "f4") for n in "abc"}), path),
            "part-4.parquet has no rows",
        ),
    ],
)
def test_fault_of_the_fifth_file_names_it(
    write: Write, tmp_path: Path, spoil: Callable[[Path], None], message: str, on_disk: None
) -> None:
    pattern = write("parquet")
    spoil(tmp_path / "part-4.parquet")
    with pytest.raises(ValueError, match=message):
        load_data(pattern)


@pytest.mark.parametrize("suffix", ["npy", "csv", "arrow"])
def test_fault_of_other_formats_names_the_file(write: Write, tmp_path: Path, suffix: str) -> None:
    pattern, path = write(suffix), tmp_path / f"part-4.{suffix}"
    if suffix == "npy":
        np.save(path, np.zeros((200, 2), np.float32))
    elif suffix == "csv":
        path.write_text("a,b\n1,2\n")
    else:
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=f"part-4.{suffix}"):
        load_data(pattern)


def test_formats_must_agree_and_files_exist(write: Write, tmp_path: Path) -> None:
    write("parquet")
    write("npy")
    with pytest.raises(ValueError, match=r"'\.npy', '\.parquet'.*one format"):
        load_data(tmp_path / "*")
    assert load_data(tmp_path).columns == ["a", "b", "c"]  # of the Parquet files
    with pytest.raises(FileNotFoundError, match=r"No file has a name like .*\.arrow"):
        load_data(tmp_path / "*.arrow")
    with pytest.raises(ValueError, match="one format"):
        load_data(tmp_path / "part-0.*")
    assert {".parquet", ".arrow", ".npy", ".csv"} <= FORMATS.keys()


def test_missing_values_pass_where_they_are_kept(
    write: Write, tmp_path: Path, on_disk: None
) -> None:
    pattern = write("parquet")
    part(c=pa.array([None] + [0.0] * 199))(tmp_path / "part-4.parquet")
    data = load_data(pattern, missing="keep")
    assert data.batch(torch.tensor([800]))[0].isnan().tolist() == [[False, False, True]]
