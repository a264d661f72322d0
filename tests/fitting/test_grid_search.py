"""Sweeps: tables of fits, resumed and spread over processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import command_line
from ppl_lvm import fit, load_run, sweep
from ppl_lvm.models import PPCA

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
OPTIONS: dict[str, Any] = {"num_steps": 4, "accuracy": 0, "engine": "eager", "validation": 10}
GRID: dict[str, Any] = {"settings.latent": [1, 2], "seed": [0, 1]}
pytestmark = pytest.mark.usefixtures("no_figures")


def run_sweep(directory: Path, grid: Any = None, **arguments: Any) -> pd.DataFrame:
    arguments = {"options": OPTIONS, "jobs": 1, "progress": False} | arguments
    return sweep(PPCA, None, X, grid or GRID, directory=directory, **arguments)


@pytest.mark.slow
def test_sweep_fits_every_combination_and_ranks_them(tmp_path: Path) -> None:
    table = run_sweep(tmp_path)
    assert sorted(zip(table["settings.latent"], table["seed"], strict=True)) == [
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]
    assert table["held_out"].is_monotonic_decreasing
    alone = fit(PPCA, None, X, settings={"latent": 2}, seed=1, progress=False, **OPTIONS)
    row = table[(table["settings.latent"] == 2) & (table["seed"] == 1)].iloc[0]
    assert row["held_out"] == alone.results["held_out"]
    assert load_run(row["directory"]).results["bound"] == row["bound"]
    assert pd.read_csv(tmp_path / "sweep.csv")["held_out"].tolist() == table["held_out"].tolist()
    assert (tmp_path / "sweep.png").stat().st_size > 1000


def test_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    first = run_sweep(tmp_path, {"settings.latent": [1], "seed": [0]})
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    table = run_sweep(tmp_path, {"settings.latent": [1, 2], "seed": [0]})
    assert files == {path: path.stat().st_mtime_ns for path in files}
    assert len(files) > 0
    assert table["settings.latent"].nunique() == 2
    assert first["bound"].iloc[0] in table["bound"].tolist()


@pytest.mark.slow
def test_fit_that_fails_is_a_row_with_its_reason(tmp_path: Path) -> None:
    table = run_sweep(tmp_path, {"optimizer": ["Adam(lr=0.01)", "Adamm(lr=0.01)"]})
    assert table["error"].iloc[0] == ""
    assert "Adam" in table["error"].iloc[1]
    assert np.isnan(table["held_out"].iloc[1])


@pytest.mark.slow
def test_random_search_samples_combinations_once(tmp_path: Path) -> None:
    grid = {"seed": list(range(50))}
    options = {**OPTIONS, "num_steps": 1}
    table = run_sweep(tmp_path, grid, samples=2, seed=3, options=options)
    assert table["seed"].nunique() == 2
    assert set(run_sweep(tmp_path, grid, samples=2, seed=3, options=options)["seed"]) == set(
        table["seed"]
    )


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"sed": [0]}, "Unknown option 'sed'.*Did you mean seed"),
        ({"seed": 3}, "seed=3 is no list of values"),
        ({"seed": []}, "no list of values"),
        ({"num_steps": [1, 2]}, "num_steps is in the grid and in the options"),
        ({"directory": ["a"]}, "directory is set by the sweep"),
        ({"other.latent": [1]}, "Unknown option"),
    ],
)
def test_wrong_grid_is_named_before_any_fit(tmp_path: Path, grid: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_sweep(tmp_path / "new", grid)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_processes_and_the_command_give_the_same_fits(tmp_path: Path) -> None:
    expected = run_sweep(tmp_path / "one")
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "sweep.toml").write_text(
        'model = "ppl_lvm.models:PPCA"\ndata = "x.npy"\ndirectory = "two"\njobs = 2\n[options]\n'
        + "".join(f"{name} = {json.dumps(value)}\n" for name, value in OPTIONS.items())
        + "[grid]\n"
        + "".join(f'"{name}" = {values}\n' for name, values in GRID.items())
    )
    done = command_line.run_command("sweep", "sweep.toml", "--json", folder=tmp_path)
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["held_out"] for row in rows] == pytest.approx(expected["held_out"].tolist())
    with pytest.raises(ValueError, match="cannot be sent to another process"):
        sweep(lambda x: None, None, X, GRID, directory=tmp_path / "three", jobs=2)
