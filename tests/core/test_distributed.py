"""Data-parallel training: two processes under torchrun equal one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from command_line import run_command
from forked import exit_statuses, start_processes
from forked import run_command as run_forked_command
from ppl_lvm.core import distributed
from ppl_lvm.core.storage import load_checkpoint

pytestmark = pytest.mark.xdist_group("forked")  # one server of processes serves them all

PROGRAM = '''
import os, time
import pyro, torch
from pyro.distributions import Delta, Normal
from pyro.nn import PyroModule
from torch import nn

WAIT = float(os.environ.get("FACTOR_WAIT", "0"))  # seconds: a run that can be caught at work

class Factor(PyroModule):
    """z_n ~ N(0, 1), x_n ~ N(w z_n + b, 1); the guide's noise is the last column of the data."""
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 1.5, 3))
        self.b = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        time.sleep(WAIT)
        m = pyro.sample("m", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(1), 1.0).to_event(1))
            mean = z * self.w + self.b + m[..., None]
            pyro.sample("x", Normal(mean, 1.0).to_event(1), obs=x[:, :3])

class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 1)
        self.spread = nn.Parameter(torch.tensor(-0.5))
        self.center = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        pyro.sample("m", Delta(self.center))
        with pyro.plate("data", len(x), dim=-1):
            z = self.encoder(x[:, :3]) + self.spread.exp() * x[:, 3:]
            pyro.sample("z", Delta(z, log_density=-self.spread).to_event(1))
'''


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    program = tmp_path / "factor.py"
    program.write_text(PROGRAM)
    data = tmp_path / "x.npy"
    np.save(data, np.random.default_rng(0).normal(size=(53, 4)))
    return [
        *("-m", "ppl_lvm", "fit", f"{program}:Factor", "--guide", f"{program}:Guide"),
        *("--data", str(data), "--batch-size", "16", "--validation", "10", "--clip-norm", "0.3"),
        *("--patience", "1000", "--seed", "4", "--kl-annealing", "10", "--json"),
    ]


def torchrun(asked: list[str], *more: str) -> list[str]:
    run = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    return [*run, "--nproc-per-node", "2", *asked, *more]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", **more}


def share(asked: list[str], *more: str) -> str:
    """Two processes do it at once, as torchrun starts them; what they say."""
    words = [*asked[2:], *more]
    output = Path(words[words.index("--directory") + 1]).with_suffix(".txt")
    statuses = exit_statuses(start_processes(2, run_forked_command, words, output))
    assert statuses == [0, 0], output.read_text()
    return output.read_text()


def state(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return load_checkpoint(directory / "checkpoint.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("level", ["captured"])
def test_two_processes_train_as_one_at_every_level(
    asked: list[str], tmp_path: Path, level: str
) -> None:
    """Also where a batch of 11 rows is left over and is not halved evenly."""
    more = ["--num-steps", "40", "--engine", level, "--directory"]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = run_command(*asked[2:], *more, str(one), folder=tmp_path)
    assert alone.returncode == 0, alone.stderr
    both = subprocess.run(
        torchrun(asked, *more, str(two)), capture_output=True, env=environment(), text=True
    )
    assert both.returncode == 0, both.stderr
    (expected, data), (parallel, other) = state(one), state(two)
    assert data["step"] == other["step"] == 40
    for name, tensor in expected.items():
        if name.startswith(("state/", "history/", "optimizer/")):
            assert torch.allclose(parallel[name], tensor, rtol=1e-4, atol=1e-6), name
    results = json.loads(alone.stdout.splitlines()[-1])
    (line,) = both.stdout.splitlines()  # the first process speaks, alone
    assert json.loads(line)["bound"] == pytest.approx(results["bound"], rel=1e-4)
    assert json.loads(line)["engine"] == level


@pytest.mark.slow
def test_killed_worker_leaves_a_checkpoint_that_resumes_bit_for_bit(
    asked: list[str], tmp_path: Path
) -> None:
    steps = ["--num-steps", "60", "--engine", "eager", "--checkpoint-seconds", "1000"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    share(asked, *steps, "--directory", str(whole))
    again = [*steps, "--directory", str(killed)]
    process = subprocess.Popen(
        torchrun(asked, *again),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(FACTOR_WAIT="0.05"),
    )
    deadline = time.monotonic() + 120
    while not (killed / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.5)
    os.kill(_workers(process.pid)[1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    _, data = state(killed)
    assert 0 < data["step"] < 60
    share(asked, *again, "--resume")
    (expected, _), (resumed, _) = state(whole), state(killed)
    for name, tensor in expected.items():
        if name.startswith(("state/", "history/bound", "optimizer/")):
            assert torch.equal(resumed[name], tensor), name


@pytest.mark.slow
def test_two_processes_run_em_as_one(tmp_path: Path) -> None:
    asked = ["-m", "ppl_lvm", "fit", "ppl_lvm.models:GaussianMixture", "--data", "iris", "--json"]
    asked += ["--objective", "em", "--set", "components=3", "--directory"]
    alone = run_command(*asked[2:], str(tmp_path / "one"), folder=tmp_path)
    both = share(asked, str(tmp_path / "two"))
    one, two = (json.loads(text.splitlines()[-1]) for text in (alone.stdout, both))
    assert one["bound"] == pytest.approx(two["bound"], rel=1e-9)
    assert one["steps"] == two["steps"]


def _workers(parent: int) -> list[int]:
    """The processes that torchrun has started, by rank."""
    workers = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                owner = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                words = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if owner == parent:
                ranks = [int(w[5:]) for w in words if w.startswith(b"RANK=")]
                workers.update(dict.fromkeys(ranks, int(entry.name)))
    return [workers[rank] for rank in sorted(workers)]


def test_alone_nothing_is_shared_out() -> None:
    rows = torch.arange(5)
    assert torch.equal(distributed.local_rows(rows), rows)
    assert distributed.local_weight(5) == 1.0
    assert distributed.broadcast_from_first("x") == "x"
    assert distributed.run_on_first(lambda: 3) == 3
    with distributed.process_group():
        assert distributed.world_size() == 1


UNSTABLE = '''
import pyro, torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import nn

class Unstable(PyroModule):
    """In restart 0 the scale of the last rows, which the second process has, becomes invalid."""
    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(()))
        self.bad, self.count = False, 0

    def initialize(self, x):
        self.bad = torch.initial_seed() % 2 == 0

    def forward(self, x):
        self.count += 1
        faulty = self.bad & (self.m > FROM) & (x[:, 0] > 100)
        scale = torch.where(faulty, torch.nan, torch.ones(len(x)))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(self.m, scale), obs=x[:, 0].clamp(max=3.0))

def guide(x):
    pass
'''


@pytest.mark.slow
@pytest.mark.parametrize("start", ["0.02", "0.2"])  # in the first epoch, and later
def test_restart_that_fails_in_one_process_counts_as_failed_in_all(
    start: str, tmp_path: Path
) -> None:
    program, data = tmp_path / "unstable.py", tmp_path / "x.npy"
    program.write_text(UNSTABLE.replace("FROM", start))
    np.save(data, np.array([[1.0]] * 7 + [[101.0]]))
    words = ["-m", "ppl_lvm", "fit", f"{program}:Unstable", "--guide", f"{program}:guide"]
    words += ["--data", str(data), "--restarts", "2", "--seed", "4", "--num-steps", "30"]
    words += ["--optimizer", "Adam(lr=0.05)", "--directory", str(tmp_path / "run")]
    share(words)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    failed, other = record["restarts"]
    assert failed["bound"] is None
    assert failed["degenerate"].startswith("it ended: Step ")
    assert failed["steps"] < 30 == other["steps"]
    assert other["chosen"]
