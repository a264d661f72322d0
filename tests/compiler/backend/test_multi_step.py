"""Several steps per call against single steps."""

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
    counts: list[int] = []

    def count_calls(step: Any, data: Any, rows: Any, count: int, *rest: Any) -> Any:
        counts.append(count)
        return take_steps(step, data, rows, count, *rest)

    rows = torch.stack([(torch.arange(6) * 5 + s) % len(data) for s in range(sum(chunks))])
    losses: list[float] = []
    with patch("ppl_lvm.compiler.training_step.take_steps", count_calls):
        for part in rows.split(chunks):
            losses += svi.steps(data, rows=part)
    assert counts[-1:] == (chunks[-1:] if engine == "compiled" else [])  # one call
    return losses, [p.detach().clone() for p in model.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixture", "belief net"])
def test_steps_in_one_call_equal_single_steps(name: str) -> None:
    data = programs.real(30) if name == "mixture" else programs.binary(30)
    expected, eager = run(name, "eager", [6, 12, 12], data)
    losses, compiled = run(name, "compiled", [6, 12, 12], data)
    assert losses == pytest.approx(expected, rel=1e-5)
    for a, b in zip(compiled, eager, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    same_losses, same = run(name, "compiled", [6, 7, 17], data)  # other calls, the same steps
    assert same_losses == losses
    assert all(torch.equal(a, b) for a, b in zip(same, compiled, strict=True))


def test_steps_are_a_loop_of_single_steps_when_not_compiled() -> None:
    data = programs.real(30)
    assert run("mixture", "captured", [10], data)[0] == pytest.approx(
        run("mixture", "eager", [10], data)[0], rel=1e-5
    )
