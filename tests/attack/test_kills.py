"""Runs killed at random moments resume bit for bit."""

import json
import os
import random
import signal
import time
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch

import forked
from interrupted_runs import KINDS, STATUSES, Ending, num_processes, work
from ppl_lvm.core.storage import load_checkpoint

pytestmark = pytest.mark.xdist_group("forked")

KILLS = int(os.environ.get("ATTACK_KILLS", "16"))  # of each kind
SEED = os.environ.get("ATTACK_SEED", "")  # of the moments
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST_KILLS = 4  # of one run
UNHARMED = Ending()


def _run(
    kind: str, folder: Path, name: str, seconds: float = 0.0, ending: Ending = UNHARMED
) -> set[int | None]:
    """Exit statuses of the processes of a fit, before torchrun's agent ends those that are left."""
    output, count = folder / f"{name}.txt", num_processes(kind)
    processes = forked.start_processes(count, work, kind, folder / name, seconds, ending, output)
    limit, statuses = time.monotonic() + 900, set[int | None]()
    while any(process.is_alive() for process in processes):
        assert time.monotonic() < limit, f"{kind} hangs: {output.read_text()[-2000:]}"
        wait([process.sentinel for process in processes if process.is_alive()], 1.0)
        if any(process.exitcode for process in processes):
            statuses = {process.exitcode for process in processes if process.exitcode}
            for process in processes:
                process.join(2.0)
                process.terminate()
    return statuses or {process.exitcode for process in processes}


def assert_equal_runs(a: Path, b: Path) -> None:
    """Parameters, trajectories, history and results are equal bit for bit."""
    for name in ("parameters", "trajectories", "draws"):
        paths = [folder / f"{name}.safetensors" for folder in (a, b)]
        assert paths[0].exists() == paths[1].exists(), name
        if paths[0].exists():
            (expected, _), (resumed, _) = map(load_checkpoint, paths)
            assert expected.keys() == resumed.keys()
            for key, tensor in expected.items():
                same = torch.equal(tensor.nan_to_num(), resumed[key].nan_to_num())
                assert same, f"{name}: {key}"
    assert (a / "history.json").read_bytes() == (b / "history.json").read_bytes()
    records = [json.loads((folder / "run.json").read_text()) for folder in (a, b)]
    results = [{k: v for k, v in r["results"].items() if k in COMPARED} for r in records]
    assert results[0] == results[1]


COMPARED = ("bound", "held_out", "log_evidence", "steps", "seed", "jensen_shannon", "p_value")


@pytest.mark.attack
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_at_random_moments_equals_one_that_was_not(kind: str, tmp_path: Path) -> None:
    draw = random.Random(kind + SEED)
    assert _run(kind, tmp_path, "whole") == {0}
    duration = float((tmp_path / "whole.seconds").read_text())
    kills = runs = 0
    while kills < KILLS:
        runs += 1
        name = f"killed{runs}"
        output = tmp_path / f"{name}.txt"
        for _ in range(MOST_KILLS):
            rank = draw.choice((None, *range(num_processes(kind))))
            moment = ("seconds", draw.uniform(0.02, 0.7) * duration)
            if draw.random() < 0.5 and not rank:  # the first process writes
                moment = ("writes", draw.randint(1, 120))
            ending = Ending(draw.choice(SIGNALS), moment, rank)
            statuses = _run(kind, tmp_path, name, draw.choice((0.0, 0.02)), ending)
            if statuses == {0}:
                break
            expected = STATUSES[ending.number] | ({1} if num_processes(kind) > 1 else set())
            # 1: of a process that has lost the one that received the signal, and ends first.
            assert statuses & expected, (statuses, output.read_text()[-2000:])
            kills += 1
        assert _run(kind, tmp_path, name) == {0}, output.read_text()[-2000:]
        assert_equal_runs(tmp_path / "whole", tmp_path / name)
    print(f"{kind}: {kills} kills in {runs} runs, all equal")
