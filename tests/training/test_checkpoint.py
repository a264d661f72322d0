"""Checkpoints: a killed run resumes bit for bit."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import forked
from command_line import run_command
from ppl_lvm.core.storage import load_checkpoint

pytestmark = pytest.mark.xdist_group("forked")  # they share one server of processes

PROGRAM = '''
import random, time
import numpy as np, pyro, torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import nn

class Noisy(PyroModule):
    """Draws from every random generator and updates a running mean in a buffer."""
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("mean", torch.zeros(width))
        self.decoder = nn.Linear(2, width)

    def forward(self, x):
        time.sleep(0.002)
        noise = 0.0
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
            noise = 0.01 * (np.random.standard_normal() + random.gauss(0, 1))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", Normal(self.decoder(z) + self.mean + noise, 1.0).to_event(1), obs=x)

class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 2)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.encoder(x), 0.5).to_event(1))
'''

STEPS = 140


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    program = tmp_path / "noisy.py"
    program.write_text(PROGRAM)
    data = tmp_path / "x.npy"
    np.save(data, np.random.default_rng(0).normal(size=(70, 3)))
    return [
        *("fit", f"{program}:Noisy"),
        *("--guide", f"{program}:Guide", "--data", str(data), "--num-steps", str(STEPS)),
        *("--batch-size", "16", "--validation", "10", "--patience", "1000", "--seed", "4"),
        *("--schedule", "OneCycleLR(max_lr=0.01, total_steps=140)", "--kl-annealing", "70"),
        *("--checkpoint-seconds", "0", "--json"),
    ]


def assert_equal_checkpoints(a: Path, b: Path) -> None:
    tensors, data = load_checkpoint(a / "checkpoint.safetensors")
    other_tensors, other_data = load_checkpoint(b / "checkpoint.safetensors")
    assert tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(
            tensor.nan_to_num(nan=-1.0) if tensor.is_floating_point() else tensor,
            other_tensors[name].nan_to_num(nan=-1.0)
            if tensor.is_floating_point()
            else other_tensors[name],
        ), name
    for key in data.keys() - {"seconds"}:
        assert data[key] == other_data[key], key


@pytest.mark.slow
def test_run_killed_twice_equals_an_uninterrupted_run(command: list[str], tmp_path: Path) -> None:
    complete, killed = tmp_path / "complete", tmp_path / "killed"
    uninterrupted = run_command(*command, "--directory", str(complete), folder=tmp_path)
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    last_step = 0
    for attempt in range(2):
        arguments = [*command, "--directory", str(killed), *["--resume"] * bool(attempt)]
        (process,) = forked.start_processes(
            1, forked.run_command, arguments, tmp_path / "output.txt"
        )
        checkpoint = killed / "checkpoint.safetensors"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.is_alive():
            if checkpoint.exists() and load_checkpoint(checkpoint)[1]["step"] > last_step + 20:
                break
            time.sleep(0.01)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "output.txt").read_text()
        step = load_checkpoint(checkpoint)[1]["step"]
        assert last_step < step < STEPS, "killed too late to prove anything"
        last_step = step
    resumed = [*command, "--directory", str(killed), "--resume"]
    final = run_command(*resumed, folder=tmp_path)
    assert final.returncode == 0, final.stderr
    assert_equal_checkpoints(complete, killed)
    results = json.loads(final.stdout.splitlines()[-1])
    assert results["steps"] == STEPS
    assert results["bound"] == json.loads((complete / "run.json").read_text())["results"]["bound"]
    repeated = run_command(*resumed, folder=tmp_path)
    assert json.loads(repeated.stdout.splitlines()[-1])["bound"] == results["bound"]


@pytest.mark.slow
def test_resume_rejects_a_run_with_another_seed(command: list[str], tmp_path: Path) -> None:
    directory = ["--directory", str(tmp_path / "r")]
    command[command.index("--num-steps") + 1] = "3"
    command[command.index("--schedule") + 1] = "StepLR(step_size=1)"
    command[command.index("--kl-annealing") + 1] = "2"
    assert run_command(*command, *directory, folder=tmp_path).returncode == 0
    command[command.index("--seed") + 1] = "5"
    refused = run_command(*command, *directory, "--resume", folder=tmp_path)
    assert refused.returncode == 2
    assert "holds another run: its options differs in seed" in refused.stderr
    assert refused.stdout == ""
