"""Compilation in another process."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_lvm.compiler.backend import worker as worker_module
from ppl_lvm.compiler.backend.inductor import compile_graph
from ppl_lvm.compiler.backend.worker import CompileWorker


@pytest.mark.slow
def test_worker_compiles_and_this_process_loads_the_result_from_the_cache() -> None:
    number = time.time_ns() % 10**6  # so that no cache contains this graph

    def step(x: Tensor) -> list[Tensor]:
        return [(x.exp() + number).log().sum(0)]

    x = torch.arange(12.0).reshape(3, 4)
    graph = make_fx(step, tracing_mode="fake")(x)  # as `CompiledStep`: others are not cached
    worker, lines = CompileWorker(), list[str]()
    worker.start(graph, [x], same_random=True)
    assert worker.running
    assert worker.wait(lines.append) is None
    assert not worker.running
    from torch._dynamo.utils import counters

    counters.clear()
    (result,) = compile_graph(graph, [x], same_random=True)(x)
    assert torch.allclose(result, step(x)[0])
    assert counters["aot_autograd"]["autograd_cache_hit"] == 1


def test_worker_that_is_stopped_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[Any] = []
    popen = worker_module.subprocess.Popen
    monkeypatch.setattr(
        worker_module.subprocess,
        "Popen",
        lambda *args, **options: processes.append(popen(*args, **options)) or processes[-1],
    )
    worker = CompileWorker()
    worker.start(make_fx(torch.exp)(torch.ones(2)), [torch.ones(2)], same_random=True)
    (process,) = processes
    worker.stop()
    assert process.poll() is not None
    assert not worker.running


def test_worker_does_not_start_for_a_graph_that_cannot_be_pickled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(graph: Any) -> bytes:
        raise TypeError("cannot pickle")

    monkeypatch.setattr(worker_module, "_pack", fail)
    worker = CompileWorker()
    worker.start(make_fx(torch.exp)(torch.ones(2)), [torch.ones(2)], same_random=True)
    assert not worker.running
    assert worker.wait(lambda line: None) is None
