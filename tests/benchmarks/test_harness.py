"""What a benchmark leaves behind."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from ppl_lvm.benchmarks import harness as record


def test_publish_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"estimator": "IWAE", "bias": 0.123456}, {"estimator": "DReG", "bias": float("nan")}]
    result = record.publish(
        "demo",
        "Is it so?\n\nMore.",
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
    assert written["rows"][1]["bias"] is None  # NaN is no JSON
    assert written["slope"] == [1.0, 1.0]
    assert written["environment"]["versions"]["torch"] == torch.__version__
    assert (tmp_path / "demo.png").exists()


def test_command_makes_options_of_keywords() -> None:
    def run(
        *, smoke: bool = False, seed: int = 0, model: str | None = None, data: str | None = None
    ) -> record.Result:
        return {"smoke": smoke, "seed": seed, "model": model, "data": data}

    given = record.command(run, ["mine.py:M", "--smoke", "--seed", "4", "--data", "x.csv"])
    assert given == {"smoke": True, "seed": 4, "model": "mine.py:M", "data": "x.csv"}
    assert record.command(run, [])["smoke"] is False


def test_command_refuses_a_misspelt_option(capsys: pytest.CaptureFixture[str]) -> None:
    def run(*, smoke: bool = False) -> record.Result:
        return {}

    with pytest.raises(SystemExit):
        record.command(run, ["--smok3"])
    assert "--smok3" in capsys.readouterr().err
