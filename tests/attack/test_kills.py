"""Runs killed at random moments resume bit for bit."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from interrupted_runs import KINDS, STATUSES, work

import forked
from ppl_lvm.core.storage import load_checkpoint

pytestmark = pytest.mark.xdist_group("forked")

KILLS = int(os.environ.get("ATTACK_KILLS", "16"))  # of each kind
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST_KILLS = 4  # of one run


def _run(kind: str, folder: Path, name: str, *how: object) -> int | None:
    output = folder / f"{name}.txt"
    (process,) = forked.start_processes(1, work, kind, folder / name, *how, output)
    process.join(300)
    assert not process.is_alive(), f"{kind} hangs: {output.read_text()[-2000:]}"
    return process.exitcode


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
    draw = random.Random(kind)
    assert _run(kind, tmp_path, "whole", 0.0, signal.SIGKILL, ("never", 0)) == 0
    duration = float((tmp_path / "whole.seconds").read_text())
    kills = runs = 0
    while kills < KILLS:
        runs += 1
        name = f"killed{runs}"
        for _ in range(MOST_KILLS):
            number = draw.choice(SIGNALS)
            moment = ("seconds", draw.uniform(0.02, 0.7) * duration)
            if draw.random() < 0.5:
                moment = ("writes", draw.randint(1, 120))
            seconds = draw.choice((0.0, 0.02))
            status = _run(kind, tmp_path, name, seconds, number, moment)
            text = (tmp_path / f"{name}.txt").read_text()
            if status == 0:
                break
            assert status in STATUSES[number], text[-2000:]
            kills += 1
        assert _run(kind, tmp_path, name, 0.0, signal.SIGKILL, ("never", 0)) == 0, (
            tmp_path / f"{name}.txt"
        ).read_text()[-2000:]
        assert_equal_runs(tmp_path / "whole", tmp_path / name)
    print(f"{kind}: {kills} kills in {runs} runs, all equal")
