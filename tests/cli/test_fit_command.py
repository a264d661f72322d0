"""`ppl-lvm fit`: options, front ends, results and errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import ppl_lvm
from command_line import run_command
from ppl_lvm.cli import app
from ppl_lvm.training.options import BRACKETS, PYTHON_ONLY, FitOptions, declared

PROGRAM = """
import pyro, torch
from pyro.distributions import Categorical, Normal
from pyro.nn import PyroModule
from torch import nn

class Two(PyroModule):
    def __init__(self, gap: float = 2.0) -> None:
        super().__init__()
        self.gap = gap
        self.m = nn.Parameter(torch.tensor([0.0, gap]))

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(self.m[z].unsqueeze(-1), 1.0).to_event(1), obs=x)

def guide(x):
    pass
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    (tmp_path / "two.py").write_text(PROGRAM)
    (tmp_path / "x.csv").write_text("length\n" + "\n".join(str(i / 10) for i in range(40)))
    return "two.py:Two"


@pytest.mark.slow
def test_fit_prints_json_last_and_writes_a_directory(program: str, tmp_path: Path) -> None:
    words = ["fit", program, "--guide", "two.py:guide", "--data", "x.csv", "--num-steps", "5"]
    strict = [sys.executable, "-W", "error", "-W", "ignore::FutureWarning", "-m", "ppl_lvm"]
    done = subprocess.run(
        [*strict, *words, "--set", "gap=3.0", "--validation", "0.25", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert {"directory", "bound", "log_evidence", "held_out"} <= results.keys()
    directory = tmp_path / results["directory"]
    assert directory == tmp_path / "runs" / "Two-x-1"
    assert (directory / "pictures" / "training.png").stat().st_size > 1000
    record = json.loads((directory / "run.json").read_text())
    assert record["model"]["settings"] == {"gap": 3.0}
    assert record["data"]["train_rows"] == 30
    second = run_command(*words, folder=tmp_path)
    assert "runs/Two-x-2" in second.stdout
    assert max(len(line) for line in second.stdout.splitlines()) <= 90


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["two.py:Tow", "--data", "x.csv"], "two.py: it has no 'Tow'. Available: Two, guide."),
        (["two.py:Two", "--data", "y.csv"], "y.csv"),
        (["two.py:Two", "--data", "iriss"], "iris"),
        (["two.py:Two", "--data", "x.csv", "--set", "gab=1"], "Did you mean"),
        (["two.py:Two", "--data", "x.csv", "--objective", "ELBOO"], "objective 'ELBOO'"),
        (["two.py:Two", "--data", "x.csv", "--resume"], "--resume needs --directory"),
    ],
)
def test_fit_reports_an_error_of_the_user_in_one_line(
    program: str, tmp_path: Path, words: list[str], message: str
) -> None:
    done = run_command("fit", *words, "--guide", "two.py:guide", folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_fit_runs_expectation_maximization_by_its_name(tmp_path: Path) -> None:
    words = ["fit", "ppl_lvm.models:GaussianMixture", "--data", "iris", "--set", "components=3"]
    words += ["--objective", "em"]
    done = run_command(*words, "--restarts", "3", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["bound"] == pytest.approx(-1.2012, abs=0.001)
    refused = run_command(*words, "--optimizer", "Adam(lr=1.0)", folder=tmp_path)
    assert refused.returncode == 2
    assert "--objective em takes no --optimizer" in refused.stderr


@pytest.mark.slow
def test_fit_runs_online_em_with_missing_values(tmp_path: Path) -> None:
    rows = [f"{i % 7},{'' if i % 9 == 0 else i % 5}" for i in range(300)]
    (tmp_path / "gaps.csv").write_text("a,b\n" + "\n".join(rows))
    words = ["fit", "ppl_lvm.models:PPCA", "--data", "gaps.csv", "--missing", "keep"]
    words += ["--set", "latent=1", "--num-steps", "3", "--batch-size", "50", "--json"]
    online = ["--objective", "em(decay=0.6)", "--validation", "60"]
    done = run_command(*words, *online, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["steps"] == 3 + 1
    assert results["held_out"] is not None
    refused = run_command(*words, "--objective", "em(decai=0.6)", folder=tmp_path)
    assert "em takes decay, tolerance, got decai" in refused.stderr


@pytest.mark.slow
def test_fit_draws_rows_of_a_file_as_images_of_the_given_shape(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).random((30, 12)) < 0.5
    np.savez(tmp_path / "halves.npz", x=bits[:, :6] * 1.0, y=bits[:, 6:] * 1.0)
    words = ["fit", "ppl_lvm.models:ConditionalVAE", "--data", "halves.npz", "--num-steps", "2"]
    shaped = ["--image-shape", "4", "3", "--directory", "r", "--json"]
    done = run_command(*words, *shaped, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "r/run.json").read_text())
    assert record["data"]["source"]["image_shape"] == [4, 3]
    assert (tmp_path / "r/pictures/filled_in.png").exists()
    wrong = run_command(*words, "--image-shape", "4", "4", folder=tmp_path)
    assert wrong.returncode != 0
    assert "--image-shape 4 4 does not fit rows of 6 and 6 values" in wrong.stderr


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The beginning of a command that fits a model of continuous latents to 40 rows."""
    monkeypatch.chdir(tmp_path)
    z = torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
    x = (z * torch.tensor([2.0, 1.0, -1.0]) > 0).int().tolist()
    (tmp_path / "x.csv").write_text("a,b,c\n" + "\n".join(",".join(map(str, r)) for r in x))
    words = ["fit", "ppl_lvm.models:FactorModel", "--data", "x.csv", "--set", "latent=1"]
    return [*words, "--set", "likelihood=bernoulli"]


@pytest.mark.slow
def test_fit_runs_monte_carlo_em_with_arguments_in_brackets(answers: list[str]) -> None:
    mcem = "mcem(num_draws=3, warmup=5, guide_steps=10)"
    words = [*answers, "--objective", mcem, "--num-steps", "3", "--validation", "10", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout.splitlines()[-1])
    run = ppl_lvm.load_run(results["directory"])
    assert run.record["options"] == {
        "max_iterations": 3,
        "num_draws": 3,
        "warmup": 5,
        "guide_steps": 10,
        "seed": 0,
    }
    assert run.record["data"]["held_out_rows"] == results["log_evidence_rows"] == 10
    assert run.draws["z"].shape == (3, 30, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective", "mcem", "--restarts", "3"], "--objective mcem takes no --restarts"),
        (["--objective", "em", "--guide", "x.py:G"], "--objective em takes no --guide"),
        (["--objective", "mcem(draws=3)"], "mcem takes guide_steps, num_draws, warmup, got draws"),
        (["--objective", "mcem(max_iterations=3)"], "got max_iterations. Give it as --num-steps."),
        (["--objective", "MCEM"], "Unknown objective 'MCEM'. Did you mean mcem?"),
        (["--objective", "em(0.6)"], "is not a name with literal keyword arguments"),
        (["--objective", "mcem", "--num-steps", "0"], "max_iterations=0 is too small"),
    ],
)
def test_fit_rejects_options_that_the_objective_does_not_take(
    answers: list[str], words: list[str], message: str
) -> None:
    done = CliRunner().invoke(app, [*answers, *words])
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)
    assert not Path("runs").exists()


def test_fit_command_has_every_option_of_fit_and_no_other() -> None:
    command = typer.main.get_command(app).commands["fit"]  # type: ignore[attr-defined]
    of_data = {"model", "data", "guide", "columns", "labels", "missing", "header", "image_shape"}
    of_data |= {"one_sequence"}
    flags = {f.name for f in declared(FitOptions) if f.metadata["flag"] != PYTHON_ONLY}
    assert {p.name for p in command.params} == flags | of_data | {"as_json", "help"} - {"help"}
    for parameter in command.params:
        assert parameter.help, parameter.name


@pytest.mark.parametrize("name", ["fit_em", "fit_mcem", "fit_adversarial"])
def test_every_option_of_a_front_end_is_an_option_of_fit_or_in_brackets(name: str) -> None:
    command = {f.name for f in declared(FitOptions)} | {"guide"}
    for field in declared(getattr(ppl_lvm, name).options):
        flag = field.metadata["flag"]
        assert flag in (BRACKETS, PYTHON_ONLY) or (flag or field.name) in command, field.name


def test_fit_weights_rows_by_a_column(program: str, tmp_path: Path) -> None:
    lines = [f"{i / 10},{i % 3}" for i in range(40)]
    (tmp_path / "weighted.csv").write_text("length,count\n" + "\n".join(lines))
    words = ["fit", program, "--guide", "two.py:guide", "--num-steps", "3"]
    data = ["--data", "weighted.csv", "--weights", "count", "--directory", "run"]
    done = run_command(*words, *data, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["total_weight"] == 39.0
    assert record["data"]["source"]["weights"] == "count"
    wrong = run_command(*words, *data[:2], "--weights", "counts", folder=tmp_path)
    assert wrong.returncode != 0
    assert "no column 'counts' with weights. Did you mean count?" in wrong.stderr


def test_fit_reads_a_column_as_one_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(60, generator=draw).cumsum(0).tolist()
    Path("series.csv").write_text("level\n" + "\n".join(map(str, values)))
    words = ["fit", "ppl_lvm.models:LinearStateSpace", "--data", "series.csv", "--set", "latent=1"]
    words += ["--objective", "em", "--num-steps", "4", "--directory", "runs/series"]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code != 0
    result = CliRunner().invoke(app, [*words, "--one-sequence"])
    assert result.exit_code == 0, result.output
    assert "NO, after 4 iterations. Raise --num-steps" in " ".join(result.output.split())
    run = ppl_lvm.load_run("runs/series")
    data, _ = run.data()
    assert [t.shape for t in data.batch(torch.arange(1))] == [(1, 60, 1)]
    assert [t.shape for t in run.batch("series.csv")] == [(1, 60, 1)]


def test_load_data_rejects_one_sequence_of_several_arrays() -> None:
    with pytest.raises(ValueError, match="one_sequence takes steps"):
        ppl_lvm.load_data((torch.zeros(4, 1), torch.zeros(4, 1)), one_sequence=True)
