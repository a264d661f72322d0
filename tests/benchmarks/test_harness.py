"""Published benchmark results and command lines."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from ppl_lvm.benchmarks import harness


def test_publish_prints_table_and_writes_json_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"estimator": "IWAE", "bias": 0.123456}, {"estimator": "DReG", "bias": float("nan")}]
    result = harness.publish(
        "demo",
        "A title.\n\nIs it\nso? More.",
        rows,
        Figure(),
        seed=3,
        directory=tmp_path,
        slope=torch.ones(2),
    )
    out = capsys.readouterr().out
    assert "Is it so?" in out
    assert "0.1235" in out
    assert result["question"] == "Is it so?"
    written = json.loads((tmp_path / "demo.json").read_text())
    assert written["rows"][1]["bias"] is None  # JSON has no NaN
    assert written["slope"] == [1.0, 1.0]
    assert written["environment"]["versions"]["torch"] == torch.__version__
    assert (tmp_path / "demo.png").exists()


def test_command_line_has_one_option_per_keyword() -> None:
    def run(
        *, smoke: bool = False, seed: int = 0, model: str | None = None, data: str | None = None
    ) -> harness.Result:
        return {"smoke": smoke, "seed": seed, "model": model, "data": data}

    result = harness.command(run, ["mine.py:M", "--smoke", "--seed", "4", "--data", "x.csv"])
    assert result == {"smoke": True, "seed": 4, "model": "mine.py:M", "data": "x.csv"}
    assert harness.command(run, [])["smoke"] is False


def test_command_line_rejects_misspelled_option(capsys: pytest.CaptureFixture[str]) -> None:
    def run(*, smoke: bool = False) -> harness.Result:
        return {}

    with pytest.raises(SystemExit):
        harness.command(run, ["--smok3"])
    assert "--smok3" in capsys.readouterr().err
