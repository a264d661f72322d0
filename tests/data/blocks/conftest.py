"""Files of one table in four formats."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from ppl_lvm.core.types import Array
from ppl_lvm.data import readers
from ppl_lvm.data.blocks import opening

ROWS, FILES = 1000, 5


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of more than 1 kB stay in files, and few of them are sampled."""
    monkeypatch.setattr(readers, "MAP_ABOVE", 1000)
    monkeypatch.setattr(opening, "SAMPLED_ROWS", 100)


@pytest.fixture
def table() -> Array:
    """(1000, 3), whose first column has the row numbers."""
    values = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    values[:, 0] = np.arange(ROWS)
    return values


@pytest.fixture
def write(tmp_path: Path, table: Array) -> Callable[[str], Path]:
    """Write the table as five files of a format, with blocks of 60 rows; returns their pattern."""

    def write_files(suffix: str) -> Path:
        for number, part in enumerate(np.split(table, FILES)):
            path = tmp_path / f"part-{number}.{suffix}"
            columns = pa.table({name: part[:, k] for k, name in enumerate("abc")})
            if suffix == "parquet":
                parquet.write_table(columns, path, row_group_size=60)
            elif suffix == "arrow":
                with pa.OSFile(str(path), "wb") as file, ipc.new_file(file, columns.schema) as w:
                    w.write_table(columns, max_chunksize=60)
            elif suffix == "npy":
                np.save(path, part)
            else:
                np.savetxt(path, part, "%.9g", ",", header="a,b,c", comments="")
        return tmp_path / f"*.{suffix}"

    return write_files
