"""The command line: one call, one line of JSON, one line for a mistake."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from command_line import ppl_lvm

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


def test_fit_prints_json_last_and_leaves_a_directory(program: str, tmp_path: Path) -> None:
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
    second = ppl_lvm(*words, folder=tmp_path)
    assert "runs/Two-x-2" in second.stdout
    assert max(len(line) for line in second.stdout.splitlines()) <= 90


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["two.py:Tow", "--data", "x.csv"], "two.py has no 'Tow'; it offers Two, guide."),
        (["two.py:Two", "--data", "y.csv"], "y.csv"),
        (["two.py:Two", "--data", "iriss"], "iris"),
        (["two.py:Two", "--data", "x.csv", "--set", "gab=1"], "Did you mean gap?"),
        (["two.py:Two", "--data", "x.csv", "--objective", "ELBOO"], "Unknown objective"),
        (["two.py:Two", "--data", "x.csv", "--resume"], "--resume needs --directory"),
    ],
)
def test_a_mistake_is_one_line(
    program: str, tmp_path: Path, words: list[str], message: str
) -> None:
    done = ppl_lvm("fit", *words, "--guide", "two.py:guide", folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_expectation_maximization_by_name(tmp_path: Path) -> None:
    words = ["fit", "ppl_lvm.models:GaussianMixture", "--data", "iris", "--set", "components=3"]
    done = ppl_lvm(*words, "--objective", "em", "--restarts", "3", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["bound"] == pytest.approx(-1.2012, abs=0.001)
    refused = ppl_lvm(*words, "--objective", "em", "--optimizer", "Adam(lr=1.0)", folder=tmp_path)
    assert refused.returncode == 2
    assert "--objective em takes no --optimizer" in refused.stderr


def test_online_em_with_missing_values_from_the_command_line(tmp_path: Path) -> None:
    rows = [f"{i % 7},{'' if i % 9 == 0 else i % 5}" for i in range(300)]
    (tmp_path / "holes.csv").write_text("a,b\n" + "\n".join(rows))
    words = ["fit", "ppl_lvm.models:PPCA", "--data", "holes.csv", "--missing", "keep"]
    words += ["--set", "latent=1", "--num-steps", "3", "--batch-size", "50", "--json"]
    done = ppl_lvm(*words, "--objective", "em(decay=0.6)", "--validation", "60", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["steps"] == 3 + 1
    assert results["held_out"] is not None
    refused = ppl_lvm(*words, "--objective", "em(decai=0.6)", folder=tmp_path)
    assert "em takes decay, tolerance, got decai" in refused.stderr


def test_rows_of_a_file_are_drawn_as_the_pictures_they_are(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).random((30, 12)) < 0.5
    np.savez(tmp_path / "halves.npz", x=bits[:, :6] * 1.0, y=bits[:, 6:] * 1.0)
    words = ["fit", "ppl_lvm.models:ConditionalVAE", "--data", "halves.npz", "--num-steps", "2"]
    done = ppl_lvm(*words, "--image-shape", "4", "3", "--directory", "r", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "r/run.json").read_text())
    assert record["data"]["source"]["image_shape"] == [4, 3]
    assert (tmp_path / "r/pictures/filled_in.png").exists()
    wrong = ppl_lvm(*words, "--image-shape", "4", "4", folder=tmp_path)
    assert wrong.returncode != 0
    assert "image_shape=(4, 4) does not suit rows of 6 and 6 numbers" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "told"), [(["--help"], "none lists them"), (["speed", "--help"], "--program")]
)
def test_help_after_a_benchmarks_name_is_its_own(
    tmp_path: Path, words: list[str], told: str
) -> None:
    done = ppl_lvm("bench", *words, folder=tmp_path)
    assert done.returncode == 0
    assert told in done.stdout
