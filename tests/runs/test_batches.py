"""Runs that read rows of files in batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet

from ppl_lvm import Run, compare, fit, fit_em, load_data
from ppl_lvm.core.errors import WriteError
from ppl_lvm.data import Data, readers
from ppl_lvm.data.blocks import opening
from ppl_lvm.models import PPCA, BayesianGaussianMixture, GaussianMixture
from ppl_lvm.runs import rows

X = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32) * [1, 2, 3]


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    options: dict[str, Any] = {"max_iterations": 3}
    return [
        fit_em(PPCA(latent=1), X, **options),
        fit_em(GaussianMixture(components=2), X, **options),
    ]


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    """X in files, read in batches of 70 rows."""
    monkeypatch.setattr(readers, "MAP_ABOVE", 100)
    monkeypatch.setattr(opening, "SAMPLED_ROWS", 50)
    monkeypatch.setattr(rows, "BATCH_ROWS", 70)
    for number, part in enumerate(np.split(X, 3)):
        np.save(tmp_path / f"{number}.npy", part)
    data = load_data(tmp_path / "*.npy", shuffle_buffer=100)
    assert data.blocks is not None
    return data


def test_codes_of_files_equal_those_in_memory(
    runs: list[Run], on_disk: Data, tmp_path: Path
) -> None:
    for run in runs:
        ((name, codes),) = run.encode(X).items()
        assert torch.allclose(run.encode(on_disk)[name], codes, atol=1e-6)
        assert run.encode(on_disk, output=tmp_path / "codes.parquet") == {}
        table = parquet.read_table(tmp_path / "codes.parquet")
        values = np.stack([column.to_numpy() for column in table.columns], axis=1)
        assert np.allclose(values, codes.reshape(300, -1), atol=1e-6)
        assert parquet.read_metadata(tmp_path / "codes.parquet").num_row_groups == 5
        assert load_data(tmp_path / "codes.parquet").columns == table.column_names


def test_codes_that_cannot_be_written_leave_the_file(
    runs: list[Run], on_disk: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "codes.parquet"
    with pytest.raises(ValueError, match=r"codes.csv is no \.parquet file"):
        runs[0].encode(on_disk, output=tmp_path / "codes.csv")
    runs[0].encode(on_disk, output=path)
    before, files = path.read_bytes(), set(tmp_path.iterdir())
    (tmp_path / "0.npy").touch()
    with pytest.raises(ValueError, match=r"0.npy has changed"):
        runs[0].encode(on_disk, output=path)
    with pytest.raises(WriteError, match=r"/dev/full/codes.parquet cannot be written"):
        runs[0].encode(X, output="/dev/full/codes.parquet")
    assert path.read_bytes() == before
    assert set(tmp_path.iterdir()) == files


def test_evidence_of_files_equals_that_in_memory(runs: list[Run], on_disk: Data) -> None:
    for run in runs:  # exact posteriors: one draw has no noise
        expected, value = run.log_evidence(X, 20), run.log_evidence(on_disk, 20)
        assert value.value == pytest.approx(expected.value, abs=1e-5)
        assert value.standard_error == pytest.approx(expected.standard_error, rel=1e-4)
        assert torch.allclose(value.per_row, expected.per_row, atol=1e-4)
    weights = np.arange(300.0)
    weighted = [d.with_weights(weights) for d in (load_data(X), on_disk)]
    values = [runs[0].log_evidence(data, 20).value for data in weighted]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_batches_of_evidence_have_independent_draws(
    tmp_path: Path, on_disk: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal rows in two batches have independent draws."""
    run = fit(PPCA(latent=1), None, X, num_steps=2, accuracy=0, engine="eager", progress=False)
    monkeypatch.setattr(rows, "BATCH_ROWS", 30)
    np.save(tmp_path / "0.npy", np.tile(X[:30], (2, 1)))
    first, second = run.log_evidence(load_data(tmp_path / "0.npy"), 5).per_row.split(30)
    assert not torch.allclose(first, second, atol=1e-6)


def test_comparison_and_diagnosis_of_files(runs: list[Run], on_disk: Data) -> None:
    expected, comparison = compare(runs, X), compare(runs, on_disk)
    for one, other in zip(expected.scores, comparison.scores, strict=True):
        assert one.kind == other.kind
        assert np.allclose(one.per_row, other.per_row, atol=1e-4)
        assert one.standard_error == pytest.approx(other.standard_error, rel=1e-3)
    assert len(rows.few_rows(runs[0].pair, on_disk, 40)[0]) == 40
    assert len(rows.few_rows(runs[0].pair, load_data(X), 40)[0]) == 300


def test_rows_that_share_latents_are_one_batch(on_disk: Data) -> None:
    run = fit(
        BayesianGaussianMixture(components=2),
        None,
        X,
        num_steps=2,
        accuracy=0,
        engine="eager",
        progress=False,
    )
    assert [len(batch[0]) for batch, _ in rows.batches(run.pair, on_disk)] == [300]
