"""Every command prints JSON, and completes in shells."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import command_line
import ppl_lvm as lvm
from ppl_lvm.cli import app
from ppl_lvm.models import PPCA


def _json(*arguments: str, folder: Path) -> Any:
    done = command_line.run_command(*arguments, "--json", folder=folder)
    return json.loads(done.stdout.splitlines()[-1])


def _commands() -> list[Any]:
    groups = [app, *(group.typer_instance for group in app.registered_groups)]
    return [command.callback for group in groups for command in group.registered_commands]


def test_every_command_but_bench_takes_json() -> None:
    without = [
        command.__name__
        for command in _commands()
        if "as_json" not in inspect.signature(command).parameters
    ]
    assert without == ["bench"]  # each benchmark writes its own


def test_authors_commands_print_json(tmp_path: Path) -> None:
    model = ("ppl_lvm.models:PPCA", "--data", "iris")
    checked = _json("check", *model, folder=tmp_path)
    assert checked["ok"]
    assert {o["name"] for o in checked["objectives"] if o["supported"]} >= {"ELBO", "IWAE"}
    shown = _json("show", *model, folder=tmp_path)
    assert [site["site"] for site in shown["sites"]] == ["z", "x"]
    assert shown["parameters"]
    files = _json("new", "mine", "--like", "ppca", folder=tmp_path)["files"]
    assert all((tmp_path / file).exists() for file in files)


@pytest.mark.usefixtures("no_figures")
def test_imputation_prints_json(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    x[0, 0] = np.nan
    np.savetxt(tmp_path / "gaps.csv", x, delimiter=",")
    data = lvm.load_data(tmp_path / "gaps.csv", missing="keep")
    lvm.fit_em(PPCA(1), data, max_iterations=2, directory=tmp_path / "run")
    arguments = ("impute", "run", "--data", "gaps.csv", "--output", "full.csv")
    assert _json(*arguments, folder=tmp_path) == {
        "output": "full.csv",
        "site": "x",
        "shape": [20, 3],
    }


@pytest.mark.usefixtures("no_figures")
def test_codes_are_written_by_the_command(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 3)))
    lvm.fit_em(PPCA(1), tmp_path / "x.npy", max_iterations=2, directory=tmp_path / "run")
    arguments = ("encode", "run", "--data", "x.npy", "--output", "codes.parquet")
    assert _json(*arguments, folder=tmp_path) == {"output": "codes.parquet"}
    assert lvm.load_data(tmp_path / "codes.parquet").tensors[0].shape == (20, 1)


def test_shells_complete_commands(tmp_path: Path) -> None:
    done = command_line.run_command("--help", folder=tmp_path)
    assert "--install-completion" in done.stdout
