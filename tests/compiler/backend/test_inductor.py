"""Compilation with Inductor."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_lvm.compiler.backend.inductor import largest_result, start_isa_probe


def test_isa_probe_runs_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    start_isa_probe().join()
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    started = []
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: started.append(a))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    pick_vec_isa()
    assert not started
    assert start_isa_probe() is start_isa_probe()


def test_largest_result_counts_results_and_no_inputs() -> None:
    """It decides whether the compiler plans memory beforehand."""

    def step(x: Tensor, y: Tensor) -> Tensor:
        low, high = torch.aminmax(y)
        return (x[:, :, None] - x[:, None, :]).sum() + low + high

    inputs = torch.ones(3, 7, dtype=torch.float64), torch.ones(1000)
    assert largest_result(make_fx(step, tracing_mode="fake")(*inputs)) == 3 * 7 * 7 * 8


def test_largest_result_skips_a_tensor_of_unknown_size() -> None:
    """A mask selects it, as in the transform to a Cholesky factor of correlations."""

    def select(x: Tensor) -> Tensor:
        return x[x > 0] + 1

    graph = make_fx(select, tracing_mode="symbolic")(torch.tensor([1.0, -1.0, 2.0]))
    assert largest_result(graph) >= 0


_ROW_SUMS = """
import sys, torch
from torch.fx.experimental.proxy_tensor import make_fx
from ppl_lvm.compiler.backend.inductor import compile_graph

x = torch.arange(400, dtype=torch.float32).reshape(100, 4) / 400
step = lambda x: [(x.exp() + float(sys.argv[1])).sum(0)]
graph = make_fx(step, tracing_mode="fake")(x)  # others are not cached
torch.testing.assert_close(compile_graph(graph, (x,), same_random=True)(x), step(x))
"""


@pytest.mark.slow
def test_compile_cache_tells_instruction_sets_apart() -> None:
    """An entry made with vector instructions is not built by a process that may not use them."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    number = f"{time.time_ns() % 10**9}.5"  # so that no cache contains this graph
    environment = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
    for restriction in ({}, {"ATEN_CPU_CAPABILITY": "default"}):
        for source in Path(cache_dir()).rglob("*.main.cpp"):
            if number in source.read_text():  # without its library the entry is built anew
                source.with_suffix(".so").unlink()
        command = [sys.executable, "-c", _ROW_SUMS, number]
        subprocess.run(command, env=environment | restriction, check=True)
