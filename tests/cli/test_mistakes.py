"""Mistakes on the command line: a message, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import run_command

GOOD = """
import pyro, torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import nn


class Factors(PyroModule):
    def __init__(self, latent=2, observed=3, scales=(1.0,)):
        super().__init__()
        self.latent, self.observed, self.scales = latent, observed, scales
        self.net = nn.Linear(latent, observed)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", Normal(self.net(z), self.scales[0]).to_event(1), obs=x)


def needs_two(x, y):
    pass


def fails(x):
    return {}["absent"]
"""
FILES = {
    "good.py": GOOD,
    "syntax.py": "def model(x:\n    pass\n",
    "imports.py": "import a_package_that_is_absent\n",
    "raises.py": "table = {}\nmodel = table['absent']\n",
    "x.csv": "a,b,c\n" + "".join(f"{i},{i * 0.5},{3 - i}\n" for i in range(12)),
    "text.csv": "a,b\n1,one\n2,two\n",
    "notes.txt": "no table",
    "empty.csv": "",
    "broken.npy": "not an array",
    "broken.parquet": "not a table",
}

FIT = ("fit", "good.py:Factors", "--data", "x.csv", "--num-steps", "1")
MISTAKES = [
    (("fit", "absent.py:Model", "--data", "x.csv"), "absent.py"),
    (("fit", "good.py", "--data", "x.csv"), "not an address"),
    (("fit", "good.py:Absent", "--data", "x.csv"), "it has no 'Absent'"),
    (("fit", "no.such.module:Model", "--data", "x.csv"), "No module named"),
    (("fit", "syntax.py:model", "--data", "x.csv"), "syntax.py cannot be loaded: line 1: SyntaxE"),
    (("fit", "imports.py:model", "--data", "x.csv"), "a_package_that_is_absent"),
    (("fit", "raises.py:model", "--data", "x.csv"), "KeyError: 'absent' (line 2 of"),
    ((*FIT[:2], "--data", "absent.csv"), "absent.csv"),
    ((*FIT[:2], "--data", "."), "."),
    ((*FIT[:2], "--data", "folder.csv"), "folder.csv"),
    ((*FIT[:2], "--data", "notes.txt"), "notes.txt"),
    ((*FIT[:2], "--data", "text.csv"), "'one' is not a number"),
    ((*FIT[:2], "--data", "empty.csv"), "empty.csv"),
    ((*FIT[:2], "--data", "broken.npy"), "broken.npy"),
    ((*FIT[:2], "--data", "broken.parquet"), "broken.parquet"),
    ((*FIT[:2], "--data", "x.csv", "--columns", "a,nothing"), "nothing"),
    ((*FIT[:2], "--data", "x.csv", "--labels", "nothing"), "nothing"),
    ((*FIT[:2], "--data", "digits(binarise=8)"), "binarise"),
    ((*FIT, "--optimizer", "1.5"), "ppl-lvm: --optimizer: '1.5' is not a name"),
    ((*FIT, "--set-guide=1"), "ppl-lvm: --set-guide: '1' is not a setting"),
    ((*FIT, "--kl-weight", "9" * 40), "--kl-weight 1e+40 is too large"),
    ((*FIT, "--guide", "1"), "ppl-lvm: --guide: '1' is not an address"),
    ((*FIT[:4], "--labels", "no"), "ppl-lvm: --labels: "),
    ((*FIT[:4], "--columns", "a,no"), "ppl-lvm: --columns: "),
    (("check", *FIT[1:4], "--guide="), "ppl-lvm: --guide: '' is not an address"),
    (("fit", "1", *FIT[2:], "--guide", "1"), "ppl-lvm: '1' is not an address"),
    (("new", "mine", "--like", "absent"), "ppl-lvm: --like: Unknown model 'absent'"),
    (("divergences", "bimodal", "--family", "1"), "ppl-lvm: --family: '1' is not an address"),
    ((*FIT, "--set", "observed=5"), "value-shape"),
    ((*FIT, "--set", "latent=two"), "latent='two'"),
    ((*FIT, "--set", "latent=-1"), "latent=-1"),
    ((*FIT, "--set", "scales=()"), "IndexError"),
    ((*FIT, "--set", "width=5"), "takes no 'width'"),
    ((*FIT, "--set", "latent"), "name=value"),
    ((*FIT, "--set-guide", "depth=2"), "depth"),
    ((*FIT, "--guide", "absent.py:Guide"), "absent.py"),
    ((*FIT, "--objective", "ELBOW"), "ELBOW"),
    ((*FIT, "--objective", "em(tolerance=)"), "em(tolerance=)"),
    ((*FIT, "--objective", "em"), "expectation-maximization"),
    ((*FIT, "--optimizer", "Adam(lr=fast)"), "Adam(lr=fast)"),
    ((*FIT, "--directory", "notes.txt"), "notes.txt"),
    ((*FIT, "--directory", "notes.txt/run"), "notes.txt"),
    ((*FIT, "--directory", "/proc/run"), "/proc/run"),
    (("fit", "good.py:needs_two", "--data", "x.csv"), "call-signature"),
    (("fit", "good.py:fails", "--data", "x.csv"), "KeyError: 'absent'"),
    (("check", "good.py:Factors", "--data", "x.csv", "--set", "observed=7"), "value-shape"),
    (("show", "good.py:fails", "--data", "x.csv"), "KeyError: 'absent'"),
    (("show", "good.py:Factors", "--data", "x.csv", "--graph", "notes.txt/g.dot"), "notes.txt"),
    (("diagnose", "absent"), "absent is not a run directory"),
    (("diagnose", "notes.txt"), "notes.txt"),
    (("compare", "absent", "other"), "absent"),
    (("report", "absent"), "absent"),
    (("diagnose", "damaged"), "run.json is damaged"),
    (("diagnose", "listed"), "run.json is damaged"),
    (("divergences", "raises.py:model"), "raises.py cannot be loaded"),
    (("divergences", "absent"), "absent"),
    (("new", "Not A Name"), "Not A Name"),
    (("new", "mine", "--directory", "notes.txt"), "notes.txt"),
    (("bench", "absent"), "absent"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mistakes")
    for name, text in FILES.items():
        (path / name).write_text(text)
    (path / "folder.csv").mkdir()
    for name, text in (("damaged", "{"), ("listed", "[1]")):
        (path / name).mkdir()
        (path / name / "run.json").write_text(text)
    return path


@pytest.mark.parametrize(("words", "text"), MISTAKES, ids=[" ".join(w) for w, _ in MISTAKES])
def test_mistake_on_the_command_line_is_a_message(
    words: tuple[str, ...], text: str, folder: Path
) -> None:
    done = run_command(*words, folder=folder)
    printed = done.stdout + done.stderr
    assert done.returncode in (1, 2)
    assert text in printed
    assert "Traceback" not in printed
    assert "fault of ppl-lvm" not in printed
    assert len(done.stderr.splitlines()) <= 12


def test_fault_of_the_package_is_one_line_that_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise KeyError("inside")

    monkeypatch.setattr("ppl_lvm.data.load_data", fails)
    monkeypatch.delenv("PPL_LVM_TRACEBACK", raising=False)
    done = run_command(*FIT, folder=folder)
    assert done.returncode == 2
    assert "KeyError: 'inside'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_closed_pipe_ends_the_command_quietly(folder: Path) -> None:
    command = [sys.executable, "-m", "ppl_lvm", "show", "good.py:Factors", "--data", "x.csv"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        printed = process.stderr.read().decode()
    assert "Traceback" not in printed
    assert "BrokenPipe" not in printed
