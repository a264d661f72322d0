"""`ppl-lvm diagnose` and `ppl-lvm compare`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ppl_lvm import fit_em
from ppl_lvm.cli import app
from ppl_lvm.models import GaussianMixture

KEYS = {"question", "name", "value", "error", "threshold", "verdict", "remedy"}
FEW = ("--temperatures", "5")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Mixtures of one and of three components on Iris."""
    folder = tmp_path_factory.mktemp("runs")
    for components in (1, 3):
        settings = {"components": components}
        fit_em(
            GaussianMixture,
            "iris",
            settings=settings,
            restarts=2,
            directory=folder / f"k{components}",
        )
    return [str(folder / "k1"), str(folder / "k3")]


def call(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow
def test_diagnose_prints_a_json_list_in_the_last_line(runs: list[str]) -> None:
    rows = json.loads(call("diagnose", runs[1], "--json", *FEW).splitlines()[-1])
    assert all(row.keys() >= KEYS for row in rows)
    names = [row["name"] for row in rows]
    assert any("clustering" in name for name in names)  # of restarts that reached the best bound


@pytest.mark.slow
def test_diagnose_does_not_wrap_for_a_pipe_and_takes_user_quantities(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def petals(x):\n    'Mean of the third column of data sets (R, N, P).'\n"
        "    return x[:, :, 2].mean(1) + 1e6 * (len(x) == 1)\n"
    )
    output = call("diagnose", runs[1], "--quantity", "mine.py:petals", *FEW)
    lines = output.splitlines()
    assert lines[0].startswith("Can this fit be trusted? ")
    assert [line for line in lines if line.startswith("Not applicable: ")] == lines[-1:]
    assert not [line for line in lines if line != line.rstrip()]
    assert "petals" in output


def test_compare_ranks_runs_and_draws_a_figure(runs: list[str], tmp_path: Path) -> None:
    picture = tmp_path / "compared.png"
    words = ("compare", *runs, "--data", "iris")
    rows = json.loads(call(*words, "--json", "--picture", str(picture)).splitlines()[-1])
    assert [row["run"] for row in rows] == ["k3", "k1"]
    assert rows[1]["verdict"] == "worse"
    assert picture.stat().st_size > 1000
    output = call(*words)
    assert output.index("k3") < output.index("k1")
    assert "150 rows, passed" in output


def test_compare_rejects_runs_without_held_out_rows(runs: list[str]) -> None:
    with pytest.raises(ValueError, match="held no rows out"):
        call("compare", *runs)
