"""What stands between a graph and its machine code happens beside the steps."""

import subprocess
import time

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_lvm.compiler.backend.inductor import CompileWorker, compile_graph, largest, start_isa_probe


def test_what_has_been_probed_is_not_probed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    start_isa_probe().join()
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    started = []
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: started.append(a))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    pick_vec_isa()
    assert not started
    assert start_isa_probe() is start_isa_probe()


@pytest.mark.slow
def test_another_process_compiles_and_this_one_finds_the_result() -> None:
    number = time.time_ns() % 10**6  # so that no cache has met this graph

    def step(x: Tensor) -> list[Tensor]:
        return [(x.exp() + number).log().sum(0)]

    x = torch.arange(12.0).reshape(3, 4)
    graph = make_fx(step, tracing_mode="fake")(x)  # as `CompiledStep` traces: others are not kept
    workshop, said = CompileWorker(), list[str]()
    workshop.start(graph, [x], same_random=True)
    assert workshop.used
    assert workshop.wait(said.append) is None
    assert not workshop.used
    from torch._dynamo.utils import counters

    counters.clear()
    (found,) = compile_graph(graph, [x], same_random=True)(x)
    assert torch.allclose(found, step(x)[0])
    assert counters["aot_autograd"]["autograd_cache_hit"] == 1


def test_the_largest_table_counts_what_is_made_not_what_lies_about() -> None:
    """It decides whether the compiler lays memory out beforehand."""

    def step(x: Tensor, y: Tensor) -> Tensor:
        low, high = torch.aminmax(y)
        return (x[:, :, None] - x[:, None, :]).sum() + low + high

    given = torch.ones(3, 7, dtype=torch.float64), torch.ones(1000)
    assert largest(make_fx(step, tracing_mode="fake")(*given)) == 3 * 7 * 7 * 8


def test_a_table_of_unknown_size_is_passed_over() -> None:
    """What a mask picks, as the transform to a Cholesky factor of correlations does."""

    def picked(x: Tensor) -> Tensor:
        return x[x > 0] + 1

    graph = make_fx(picked, tracing_mode="symbolic")(torch.tensor([1.0, -1.0, 2.0]))
    assert largest(graph) >= 0


def test_a_compilation_that_is_given_up_leaves_no_process() -> None:
    workshop = CompileWorker()
    workshop.start(make_fx(torch.exp)(torch.ones(2)), [torch.ones(2)], same_random=True)
    process = workshop._process
    assert process is not None
    workshop.stop()
    assert process.poll() is not None
    assert not workshop.used
