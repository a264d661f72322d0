"""Runs of programs outside of the package, by trust."""

import shutil
import sys
from pathlib import Path
from weakref import WeakValueDictionary

import pytest
import torch

from command_line import run_command
from ppl_lvm import fit, load_run
from ppl_lvm.programs import trust
from ppl_lvm.programs.trust import UntrustedError

PROGRAM = """
import pyro, torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import nn

class Model(PyroModule):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.width = width
        self.w = nn.Parameter(torch.ones(width))
    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z.unsqueeze(-1) * self.w, 1.0).to_event(1), obs=x)

def guide(x):
    loc = pyro.param("loc", torch.zeros(()))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(loc, 1.0))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program as a file and as a package; no fit of an earlier test is remembered."""
    monkeypatch.setattr(trust, "_fitted", WeakValueDictionary())
    (tmp_path / "mine.py").write_text(PROGRAM)
    (tmp_path / "trusted_package").mkdir()
    (tmp_path / "trusted_package/__init__.py").write_text("")
    (tmp_path / "trusted_package/mine.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def _fit(folder: Path, place: str) -> Path:
    run = folder / "run"
    programs = f"{place}:Model", f"{place}:guide"
    fit(*programs, torch.zeros(6, 2), num_steps=1, directory=run, progress=False)
    return run


def _forget() -> None:
    trust._fitted.clear()
    for name in [n for n in sys.modules if "trusted_package" in n or n.endswith("_mine")]:
        del sys.modules[name]


def test_run_of_a_file_loads_in_the_process_of_its_fit_and_elsewhere_with_trust(
    folder: Path,
) -> None:
    run = _fit(folder, str(folder / "mine.py"))
    assert load_run(run).results["steps"] == 1
    _forget()
    with pytest.raises(UntrustedError, match=r"mine.py, add --trust .*trust=True\), or pass"):
        load_run(run)
    with pytest.raises(UntrustedError, match="--trust"):
        load_run(run, trust=["trusted_package"])
    for command in ("report", "diagnose"):
        ended = run_command(command, "run", folder=folder)
        assert ended.returncode == 2
        assert "add --trust" in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
    assert not any(name.endswith("_mine") for name in sys.modules)
    assert load_run(run, trust=True).results["steps"] == 1
    _forget()
    with (folder / "mine.py").open("a") as file:
        file.write("# a comment\n")
    with pytest.raises(UntrustedError, match="has changed since the run was made"):
        load_run(run, trust=True)


def test_run_of_a_package_loads_where_the_package_is_listed(folder: Path) -> None:
    run = _fit(folder, "trusted_package.mine")
    _forget()
    with pytest.raises(UntrustedError, match=r"trust=\['trusted_package'\]"):
        load_run(run)
    assert not any("trusted_package" in name for name in sys.modules)
    assert load_run(run, trust=["trusted_package"]).results["steps"] == 1
    _forget()
    assert load_run(run, trust=True).results["steps"] == 1
    for wrong in ("trusted_package", [3], ["a b"], []):
        with pytest.raises(ValueError, match=r"trust=|no list of packages"):
            load_run(run, trust=wrong)  # type: ignore[arg-type]


def test_resume_refuses_links_out_of_the_directory(folder: Path) -> None:
    run = _fit(folder, str(folder / "mine.py"))
    shutil.rmtree(run / "pictures", ignore_errors=True)
    (folder / "elsewhere").mkdir()
    (run / "pictures").symlink_to(folder / "elsewhere")
    with pytest.raises(ValueError, match="pictures is a link out of the run directory"):
        fit(
            f"{folder}/mine.py:Model",
            f"{folder}/mine.py:guide",
            torch.zeros(6, 2),
            num_steps=1,
            directory=run,
            resume=True,
            progress=False,
        )
