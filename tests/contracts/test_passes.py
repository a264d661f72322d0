"""Contract of graph passes: the values of the original graph."""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, fx

import captured_programs as programs
from ppl_lvm.compiler import CannotCaptureError, CompiledSVI, Recording
from ppl_lvm.compiler.graph.functionalize import functional
from ppl_lvm.compiler.passes import PIPELINE, Pass, PassError, Stage, strict_passes

STEPS = 5


@functools.cache
def capture(name: str) -> tuple[Recording, list[Tensor]]:
    """The untransformed recording of a program, and the inputs that come before its constants."""
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    model, guide, loss, batch = programs.PROGRAMS[name]()
    optimizer = pyro.optim.Adam({"lr": 0.02})
    svi = CompiledSVI(model, guide, optimizer, loss, engine="captured", passes=())
    for _ in range(STEPS):
        svi.step(*batch)
    gradient = svi.training_step.gradient
    (recording,) = gradient.recordings
    leaves = [p.detach() for p in gradient.parameters]
    return recording, [*leaves, *batch, *recording.sources]


def evaluate(recording: Recording, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The outputs under one seed, and the random state afterwards."""
    torch.manual_seed(0)
    with torch.no_grad():
        copies = [tensor.clone() for tensor in inputs]
        outputs = recording.module(*copies, *recording.constants)
    return list(outputs), torch.get_rng_state()


def agrees(graph_pass: Pass, name: str) -> bool | None:
    """True if the pass gives the same outputs and draws; None if it leaves the graph alone."""
    recording, inputs = capture(name)
    rewritten = graph_pass.apply(recording.module, inputs, recording.constants)
    if rewritten is None:
        return None
    outputs, generator = evaluate(rewritten.in_recording(recording), inputs)
    expected, expected_generator = evaluate(recording, inputs)
    return torch.equal(generator, expected_generator) and all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()), equal_nan=True)
        for a, b in zip(outputs, expected, strict=True)
    )


@pytest.mark.parametrize("graph_pass", PIPELINE, ids=lambda graph_pass: graph_pass.name)
@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_pass_keeps_outputs_and_draws(name: str, graph_pass: Pass) -> None:
    always = replace(graph_pass, min_nodes=0, max_share=math.inf)
    is_functional = functional(capture(name)[0].module.graph) is not None
    assert agrees(always, name) is (True if is_functional else None)


@pytest.mark.parametrize("graph_pass", PIPELINE, ids=lambda graph_pass: graph_pass.name)
def test_pass_leaves_a_graph_below_its_minimum_alone(graph_pass: Pass) -> None:
    assert agrees(replace(graph_pass, min_nodes=10**9), "mixture") is None


@pytest.mark.parametrize("graph_pass", PIPELINE, ids=lambda graph_pass: graph_pass.name)
def test_pass_discards_a_result_above_its_maximal_share(graph_pass: Pass) -> None:
    assert agrees(replace(graph_pass, min_nodes=0, max_share=0.0), "mixture") is None


# Wrong twins


@dataclass(frozen=True)
class DoublesOutputs(Pass):
    name: ClassVar[str] = "wrong twin"
    stage: ClassVar[Stage] = "capture"

    def rewrite(
        self, graph: fx.Graph, constants: Sequence[Tensor]
    ) -> Callable[..., tuple[Tensor, ...]]:
        module = fx.GraphModule(torch.nn.Module(), graph)
        return lambda *inputs: tuple(2 * output for output in module(*inputs))


class DoublesCompiledOutputs(DoublesOutputs):
    stage = "compile"


class Fails(DoublesOutputs):
    def rewrite(self, graph: fx.Graph, constants: Sequence[Tensor]) -> Any:
        raise NotImplementedError("no rule")


class FailsCompiling(Fails):
    stage = "compile"


def run(engine: Any, passes: Sequence[Pass]) -> tuple[list[float], CompiledSVI | SVI]:
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    model, guide, loss, batch = programs.PROGRAMS["mixture"]()
    optimizer = pyro.optim.Adam({"lr": 0.02})
    svi: Any = (
        SVI(model, guide, optimizer, loss)
        if engine is None
        else CompiledSVI(model, guide, optimizer, loss, engine=engine, passes=passes)
    )
    return [svi.step(*batch) for _ in range(8)], svi


@pytest.fixture
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ppl_lvm.compiler.backend.compiled_step.compile_graph", lambda graph, *_: graph
    )


def test_contract_detects_a_wrong_pass() -> None:
    assert agrees(DoublesOutputs(), "mixture") is False


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.parametrize(
    ("engine", "graph_pass"),
    [("captured", DoublesOutputs()), ("captured", Fails()), ("compiled", FailsCompiling())],
)
def test_strict_mode_raises_for_a_wrong_or_failing_pass(engine: str, graph_pass: Pass) -> None:
    with pytest.raises(PassError, match=r"differs from the eager one|wrong twin.*no rule"):
        run(engine, [graph_pass])


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.parametrize(
    ("engine", "graph_pass"),
    [("captured", DoublesOutputs()), ("captured", Fails()), ("compiled", FailsCompiling())],
)
def test_wrong_or_failing_pass_is_skipped_with_a_logged_reason(
    engine: str, graph_pass: Pass, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ppl_lvm.compiler")
    with strict_passes(False):
        losses, svi = run(engine, [graph_pass])
    assert isinstance(svi, CompiledSVI)
    assert svi.level == engine
    assert losses == pytest.approx(run(None, [])[0], rel=1e-5)
    assert any("is skipped: " in record.getMessage() for record in caplog.records)


@pytest.mark.usefixtures("_uncompiled")
def test_wrong_pass_of_the_compile_stage_is_rejected_by_the_check_of_the_step() -> None:
    with pytest.raises(CannotCaptureError, match="differs from the captured one"):
        run("compiled", [DoublesCompiledOutputs()])
