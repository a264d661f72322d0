"""Stores of rows in files, and fits that read them."""

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_lvm import fit, fit_em, load_run
from ppl_lvm.core.errors import DataFileError
from ppl_lvm.core.types import Array
from ppl_lvm.data import in_order, load_data
from ppl_lvm.data.blocks.store import BlockStore
from ppl_lvm.models import PPCA

Write = Callable[[str], Path]


def test_store_keeps_few_regions_in_memory(write: Write, on_disk: None) -> None:
    data = load_data(write("parquet"), shuffle_buffer=150)
    store = data.store
    assert isinstance(store, BlockStore)
    for index in in_order(data, 100):
        data.batch(index)
        assert sum(len(region.values) for region in store._regions) <= 2 * 150
        assert len(store._pending) <= 2


def test_copies_of_a_store_read_again(write: Write, table: Array, on_disk: None) -> None:
    data = load_data(write("parquet"))
    index = torch.tensor([3, 500])
    data.batch(index)
    for other in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert torch.equal(other.batch(index)[0], torch.from_numpy(table)[index])


@pytest.mark.parametrize("change", [lambda p: os.utime(p, (1, 1)), Path.unlink])
def test_file_that_changes_is_named(
    write: Write, tmp_path: Path, on_disk: None, change: Callable[[Path], None]
) -> None:
    data = load_data(write("parquet"))
    change(tmp_path / "part-2.parquet")
    data.batch(torch.arange(200))
    with pytest.raises(DataFileError, match=r"part-2.parquet (has changed|was removed)"):
        data.batch(torch.arange(400, 600))


def columns(pattern: Path) -> Any:
    """Columns without the row numbers."""
    return [1, 2] if pattern.suffix == ".npy" else ["b", "c"]


def fitted(pattern: Path, directory: Path | None = None, **options: Any) -> Any:
    data = load_data(pattern, columns=columns(pattern), shuffle_buffer=150)
    settings: dict[str, Any] = (
        {"num_steps": 30, "accuracy": 0, "batch_size": 150} | {"engine": "eager"} | options
    )
    return fit(PPCA(latent=1), None, data, directory=directory, progress=False, **settings)


@pytest.mark.filterwarnings("ignore:.*not computed")
def test_fit_whose_file_changes_resumes_bit_for_bit(
    write: Write,
    tmp_path: Path,
    on_disk: None,
    monkeypatch: pytest.MonkeyPatch,
    no_figures: None,
) -> None:
    pattern, path, runs = write("parquet"), tmp_path / "part-2.parquet", tmp_path / "runs"
    expected = fitted(pattern)
    state = os.stat(path)
    read = BlockStore.take

    def take(store: BlockStore, index: torch.Tensor) -> Any:
        take.calls += 1  # type: ignore[attr-defined]
        if take.calls == 23:  # type: ignore[attr-defined]
            os.utime(path, (1, 1))
        return read(store, index)

    take.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(BlockStore, "take", take)
    with pytest.raises(DataFileError, match=r"has changed.*saved at step \d+, .*resume=True"):
        fitted(pattern, runs / "a")
    monkeypatch.setattr(BlockStore, "take", read)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    resumed = fitted(pattern, runs / "a", resume=True)
    assert resumed.history["bound"] == expected.history["bound"]
    assert (
        load_run(runs / "a").data()[0].fingerprint()
        == load_data(pattern, columns=["b", "c"]).fingerprint()
    )


def test_em_of_files_equals_em_in_memory(write: Write, table: Array, on_disk: None) -> None:
    data = load_data(write("parquet"))
    runs = [fit_em(PPCA(latent=1), rows, max_iterations=3) for rows in (data, torch.tensor(table))]
    first, second = (run.history["bound"] for run in runs)
    assert first == pytest.approx(second, rel=1e-5)


def test_restarts_and_validation_on_disk(write: Write, on_disk: None) -> None:
    run = fitted(write("npy"), restarts=2, validation=0.2, num_steps=6, validate_every=6)
    assert len(run.restarts) == 2
    assert all(entry["held_out"] is not None for entry in run.restarts)
