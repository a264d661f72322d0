"""Interrupted commands: status, checkpoint, and the command that continues."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import forked
from ppl_lvm.core.storage import load_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("forked")]

SLOW = """
import os, time
import pyro, torch
from pyro.distributions import Normal

def model(x):
    if not os.path.exists(__file__ + ".quick"):
        time.sleep(0.2)
    m = pyro.sample("m", Normal(torch.zeros((), dtype=x.dtype), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", Normal(m, 1.0), obs=x[:, 0])
"""

# Fits that would take hours.
FITS = {
    "svi": "ppl_lvm.models:PPCA --engine eager --accuracy 0",
    "em": "ppl_lvm.models:GaussianMixture --objective em(decay=0.6)",
    "mcem": "ppl_lvm.models:PPCA --objective 'mcem(num_draws=2, warmup=2)'",
    "adversarial": "ppl_lvm.models.implicit:Implicit --objective adversarial --batch-size 8",
}
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture
def common(tmp_path: Path) -> list[str]:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 2)))
    words = ["--data", str(tmp_path / "x.npy"), "--directory", str(tmp_path / "a run")]
    return [*words, "--checkpoint-seconds", "0"]


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def steps_taken(folder: Path) -> int:
    path = folder / "a run/checkpoint.safetensors"
    if not path.exists():
        return -1
    _, data = load_checkpoint(path)
    return int(data["step"] if "step" in data else len(next(iter(data["history"].values()))))


def remaining_command(output: str) -> list[str]:
    """Words after ppl-lvm of the command that the last line of the output names."""
    line = output.splitlines()[-1]
    assert line.startswith("Interrupted after ")
    launcher, *words = shlex.split(line.partition("Continue with: ")[2])
    assert launcher == "ppl-lvm"
    assert words[-1] == "--resume"
    return words


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("kind", FITS)
def test_interrupted_fit_prints_the_command_that_continues_it(
    tmp_path: Path, common: list[str], kind: str, number: int
) -> None:
    words = ["fit", *shlex.split(FITS[kind]), *common, "--num-steps", "99999999"]
    for part in ("first", "second"):
        before, output = steps_taken(tmp_path), tmp_path / part
        (process,) = forked.start_processes(1, forked.run_command, words, output)
        while process.exitcode is None and steps_taken(tmp_path) <= before + 1:
            process.join(0.05)
        assert process.exitcode is None, output.read_text()
        os.kill(process.pid or 0, number)
        process.join(300)
        assert process.exitcode == STATUS[number], output.read_text()
        words = remaining_command(output.read_text())


def test_real_process_ends_with_its_status_and_one_line(tmp_path: Path, common: list[str]) -> None:
    command = [str(Path(sys.executable).with_name("ppl-lvm")), "fit", *shlex.split(FITS["svi"])]
    command += [*common, "--num-steps", "99999999"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as fit:
        wait_until(lambda: steps_taken(tmp_path) > 0 or fit.poll() is not None)
        fit.send_signal(signal.SIGINT)
        _, errors = fit.communicate(timeout=300)
    assert fit.returncode == 130, errors
    remaining_command(errors)
    assert "Traceback" not in errors


@pytest.mark.parametrize("method", ["laplace", "auto"])
def test_interrupted_method_without_steps_is_done_again(
    tmp_path: Path, common: list[str], method: str
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    words = ["fit", f"{tmp_path}/slow.py:model", "--method", method, *common]
    output = tmp_path / "output"
    (process,) = forked.start_processes(1, forked.run_command, words, output)
    wait_until(lambda: process.exitcode is not None or (tmp_path / "a run/run.json").exists())
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(300)
    assert process.exitcode == 143, output.read_text()
    line = output.read_text().splitlines()[-1]
    assert line.startswith("Interrupted. Continue with: ppl-lvm fit ")
    words = shlex.split(line.partition("ppl-lvm ")[2])
    (tmp_path / "slow.py.quick").touch()
    (process,) = forked.start_processes(1, forked.run_command, words, output)
    process.join(300)
    assert process.exitcode == 0, output.read_text()
