"""Columns that single precision rounds, named on loading."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ppl_lvm import load_data

TIMES = 1_700_000_000 + np.arange(12)
SMALL = 100_000 + 0.001 * np.arange(12)


def sources(folder: Path) -> dict[str, Any]:
    table = np.stack([np.arange(12.0), TIMES], 1)
    frame = pd.DataFrame({"a": np.arange(12.0), "time": TIMES})
    frame.to_csv(folder / "x.csv", index=False)
    frame.to_parquet(folder / "x.parquet")
    np.save(folder / "x.npy", table)
    np.savez(folder / "x.npz", a=np.arange(12.0), time=TIMES)
    return {
        "integers": TIMES,
        "array": table,
        "frame": frame,
        "tensor": torch.tensor(table),
        "tuple": (np.arange(12.0), TIMES),
        "small": SMALL,
        **{f"x.{kind}": str(folder / f"x.{kind}") for kind in ("csv", "parquet", "npy", "npz")},
    }


NAMES = {"frame": "column 'time'", "x.csv": "column 'time'", "x.parquet": "column 'time'"}
NAMES |= {"array": "column 2", "tensor": "column 2", "x.npy": "column 2", "x.npz": "time"}
ALL = ["integers", "array", "frame", "tensor", "tuple", "small"]
ALL += ["x.csv", "x.parquet", "x.npy", "x.npz"]


@pytest.mark.parametrize("kind", ALL)
def test_loading_names_values_that_become_equal(kind: str, tmp_path: Path) -> None:
    source = sources(tmp_path)[kind]
    message = f"{NAMES.get(kind, '')}.*12 distinct values become .*float32.*set_default_dtype"
    with pytest.warns(UserWarning, match=message):
        load_data(source)
    torch.set_default_dtype(torch.float64)
    x = load_data(source).tensors[-1]
    assert len(x.reshape(12, -1)[:, -1].unique()) == 12


def test_loading_names_whole_numbers_that_change() -> None:
    with pytest.warns(UserWarning, match="whole numbers change by up to 1"):
        load_data(np.array([2**24 + 1, 5, 7]))


@pytest.mark.parametrize(
    "source",
    [
        np.random.default_rng(0).normal(size=(50_000, 2)),
        np.random.default_rng(0).normal(50, 1, size=(1000, 3)),
        np.array([[2**24], [3]]),
        np.array([1.1, np.nan, 2.2]),
        np.full((5, 1), 0.1),
        torch.tensor([2**40 + 1, 3]),
        np.arange(10, dtype=np.float32),
    ],
)
def test_loading_is_silent_where_nothing_is_lost(source: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data(source, missing="keep")


def test_loading_names_rounded_columns_of_a_mapped_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_lvm.data.readers.MAP_ABOVE", 0)
    np.save(tmp_path / "x.npy", np.stack([np.arange(12.0), TIMES], 1))
    with pytest.warns(UserWarning, match="column 2.*12 distinct values become 1"):
        load_data(tmp_path / "x.npy")
