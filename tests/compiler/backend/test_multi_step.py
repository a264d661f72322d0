"""Many steps in one call are the steps one by one."""

from typing import Any
from unittest.mock import patch

import pyro
import pytest
import torch
from torch import Tensor

import captured_programs as programs
from ppl_lvm.compiler import CompiledSVI
from ppl_lvm.compiler.backend.multi_step import take_steps


def run(name: str, engine: Any, chunks: list[int], data: Tensor) -> tuple[list[float], list[Any]]:
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    model, guide, loss, _ = programs.PROGRAMS[name]()
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss, engine=engine)
    taken: list[int] = []

    def counted(step: Any, data: Any, rows: Any, count: int, *rest: Any) -> Any:
        taken.append(count)
        return take_steps(step, data, rows, count, *rest)

    rows = torch.stack([(torch.arange(6) * 5 + s) % len(data) for s in range(sum(chunks))])
    losses: list[float] = []
    with patch("ppl_lvm.compiler.training_step.take_steps", counted):
        for part in rows.split(chunks):
            losses += svi.steps(data, rows=part)
    assert taken[-1:] == (chunks[-1:] if engine == "compiled" else [])  # the last was one call
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
    again, otherwise = run(name, "compiled", [6, 7, 17], data)  # other calls, the same steps
    assert again == got
    assert all(torch.equal(a, b) for a, b in zip(otherwise, ours, strict=True))


def test_without_compiling_they_are_a_loop() -> None:
    data = programs.real(30)
    assert run("mixture", "captured", [10], data)[0] == pytest.approx(
        run("mixture", "eager", [10], data)[0], rel=1e-5
    )
