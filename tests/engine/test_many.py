"""Many steps in one call are the steps one by one."""

import importlib.util
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from ppl_lvm.engine import CompiledSVI

_spec = importlib.util.spec_from_file_location(
    "engine_programs", Path(__file__).with_name("programs.py")
)
assert _spec is not None
assert _spec.loader is not None
programs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(programs)


def run(name: str, engine: Any, chunks: list[int], data: Tensor) -> tuple[list[float], list[Any]]:
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    model, guide, loss, _ = programs.PROGRAMS[name]()
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss, engine=engine)
    rows = torch.stack([(torch.arange(6) * 5 + s) % len(data) for s in range(sum(chunks))])
    losses: list[float] = []
    for part in rows.split(chunks):
        losses += svi.steps(data, rows=part)
    assert bool(svi._step._many) == (engine == "compiled")  # the loop inside was taken
    return losses, [p.detach().clone() for p in model.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixture", "belief net"])
def test_many_steps_in_one_call_are_the_steps_one_by_one(name: str) -> None:
    data = programs.real(30) if name == "mixture" else programs.binary(30)
    expected, theirs = run(name, "eager", [6, 12, 12], data)
    got, ours = run(name, "compiled", [6, 12, 12], data)
    assert got == pytest.approx(expected, rel=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_without_compiling_they_are_a_loop() -> None:
    data = programs.real(30)
    assert run("mixture", "captured", [10], data)[0] == pytest.approx(
        run("mixture", "eager", [10], data)[0], rel=1e-5
    )
