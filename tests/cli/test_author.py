"""`ppl-lvm check` and `ppl-lvm show`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ppl_lvm.cli import app

PROGRAM = """
import pyro, torch
from pyro.distributions import Normal

def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Normal(0.0, 1.0))
        pyro.sample("x", Normal(z.unsqueeze(-1), torch.ones(2)).to_event(1), obs=x)

def by_row(x):
    loc = pyro.param("loc", torch.zeros(len(x)))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(loc, 1.0))

def misnamed(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("zz", Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PROGRAM)
    rows = "\n".join(f"{i / 10},{-i / 10},{i % 2}" for i in range(30))
    (tmp_path / "x.csv").write_text("length,width,kind\n" + rows)
    data = ["--data", "x.csv", "--labels", "kind"]
    return lambda *words: CliRunner().invoke(app, [*words, *data])


def test_check_prints_errors_with_remedies_and_has_status_one(run) -> None:  # type: ignore[no-untyped-def]
    good = run("check", "mine.py:model")
    assert good.exit_code == 0
    assert good.stdout.startswith(
        "Nothing found: the guide fits the model.\n\nObjectives that suit"
    )
    bad = run("check", "mine.py:model", "--guide", "mine.py:misnamed")
    assert bad.exit_code == 1
    assert "error missing-in-model: The guide samples 'zz'" in bad.stdout
    assert "(mine.py:17)" in bad.stdout
    assert "remedy: The model calls it: pyro.sample('z', ...)" in bad.stdout


def test_check_finds_errors_that_occur_only_in_mini_batches(run) -> None:  # type: ignore[no-untyped-def]
    words = ["check", "mine.py:model", "--guide", "mine.py:by_row"]
    assert run(*words).exit_code == 0
    batches = run(*words, "--batch-size", "10")
    assert batches.exit_code == 1
    assert "error row-by-row: The guide's 'z' belongs to the 10 rows" in batches.stdout


def test_show_prints_declarations_and_writes_the_graph(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shown = run("show", "mine.py:model", "--columns", "length,width", "--graph", "model.dot")
    assert shown.exit_code == 0, shown.output
    assert "site  role      distribution" in shown.stdout
    assert "    x ~ Normal, seen  <- z" in shown.stdout
    assert shown.stdout.rstrip().endswith("graph: model.dot")
    assert (tmp_path / "model.dot").read_text().startswith("digraph model {")
