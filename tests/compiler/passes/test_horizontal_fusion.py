"""Fused operations give the results of the single ones."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_lvm.compiler import CompiledSVI
from ppl_lvm.compiler.capture import markov_chains
from ppl_lvm.compiler.passes import HorizontalFusion

FUSION = HorizontalFusion(min_nodes=0, max_share=10.0)  # of short graphs too


def graph(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    traced: fx.GraphModule = make_fx(function)(*inputs)
    return traced


def fuse(module: fx.GraphModule, *inputs: Tensor, constants: Any = ()) -> Any:
    """The fused graph as a function of the inputs, and the graph."""
    fused = FUSION.apply(module, inputs, constants)
    assert fused is not None
    return (lambda *tensors: fused.module(*tensors, *constants, *fused.constants)), fused.module


def loop(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """Every kind of argument: shared, sliced, stacked, summed, several results, constants."""
    rows = [(x[:, t] * w).exp() for t in range(12)]
    tops = [torch.max(row.view(3, 5), 1) for row in rows]
    total = torch.zeros(3)
    for value, _ in tops:
        total = total + value
    odd = torch.stack(rows[1::2])
    back = torch.stack(rows[::-1]).cumsum(0)
    mixed = torch.stack([rows[7], rows[2], w, rows[2], rows[0] - 1], 1)
    pieces = [p.sin() for p in back.unbind(0)]
    return total, odd, mixed, torch.cat(pieces), tops[5][1]


def test_fusion_of_a_loop_with_every_kind_of_argument() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(15, 12), torch.randn(15)
    unfused = graph(loop, x, w)
    short, module = fuse(unfused, x, w)
    torch.manual_seed(1)
    x, w = torch.randn(15, 12), torch.randn(15)  # other numbers than those of the trace
    for a, b in zip(short(x, w), loop(x, w), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert _count(module, torch.ops.aten.exp.default) == 1
    assert _count(module, torch.ops.aten.sin.default) == 1
    assert _count(unfused, torch.ops.aten.exp.default) == 12


def _count(module: fx.GraphModule, op: Any) -> int:
    return sum(node.target is op for node in module.graph.nodes)


def test_equal_constants_share_one_operation_and_unequal_ones_do_not() -> None:
    def scaled(x: Tensor, *constants: Tensor) -> tuple[Tensor, ...]:
        return tuple((x * c).tanh() for c in constants)

    x = torch.randn(7)
    constants = [torch.tensor(v) for v in (2.0, 2.0, 3.0, 2.0, 3.0)]
    short, module = fuse(graph(scaled, x, *constants), x, constants=constants)
    assert _count(module, torch.ops.aten.tanh.default) == 2
    for a, b in zip(short(x), scaled(x, *constants), strict=True):
        torch.testing.assert_close(a, b)


def test_terms_of_a_sum_are_not_reordered_first() -> None:
    def total(x: Tensor) -> tuple[Tensor, ...]:
        rows = [x[:, t].sin() for t in range(12)]
        result = rows[7]
        for t in (3, 11, 0, 4, 10, 5, 8, 1, 9, 2, 6):
            result = result + rows[t]
        return (result,)

    x = torch.randn(5, 12)
    short, module = fuse(graph(total, x), x)
    assert _count(module, torch.ops.aten.index_select.default) == 0
    torch.testing.assert_close(short(x), total(x))


def test_iota_index_is_recognized_through_any_views() -> None:
    """As of a variable whose values have two dimensions, at odd and at even steps."""

    def rows(x: Tensor) -> tuple[Tensor, ...]:
        values = [torch.arange(5), torch.arange(5)]
        indices = [values[0].view(-1, 1), values[1].view(-1, 1, 1, 1).view(5, 1)]
        other = torch.arange(5).view(1, 5)
        return (*(x[indices[t % 2]].exp() for t in range(6)), x[other].exp())

    x = torch.randn(5, 3)
    short, module = fuse(graph(rows, x), x)
    assert _count(module, torch.ops.aten.exp.default) == 2
    for a, b in zip(short(x), rows(x), strict=True):
        assert torch.equal(a, b)


def test_draws_are_not_fused_and_keep_their_order() -> None:
    def scaled_noise(x: Tensor) -> tuple[Tensor, ...]:
        noise = [torch.randn(4) if t % 2 else torch.rand(4) for t in range(10)]
        return tuple((x * n).exp() for n in noise)

    x = torch.randn(4)
    short, _ = fuse(graph(scaled_noise, x), x)
    torch.manual_seed(5)
    expected = scaled_noise(x)
    torch.manual_seed(5)
    for a, b in zip(short(x), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_unaliased_in_place_change_becomes_an_operation() -> None:
    def changed(x: Tensor) -> tuple[Tensor, ...]:
        return tuple((x + t).clamp_(min=0.5).mul_(2.0) for t in range(6))

    x = torch.randn(9)
    short, module = fuse(graph(changed, x), x)
    assert _count(module, torch.ops.aten.clamp.default) == 1
    for a, b in zip(short(x), changed(x), strict=True):
        torch.testing.assert_close(a, b)


def test_graph_that_hardly_shrinks_is_left_alone() -> None:
    x = torch.randn(4)
    module = graph(lambda x: (x.exp().sin().cos(),), x)
    assert HorizontalFusion(min_nodes=0).apply(module, [x], []) is None


def test_short_graph_is_left_alone() -> None:
    x, w = torch.randn(15, 12), torch.randn(15)
    assert HorizontalFusion(max_share=10.0).apply(graph(loop, x, w), [x, w], []) is None


# Programs


def chain(y: Tensor) -> None:
    rows = pyro.param("rows", torch.full((3, 3), 1 / 3), constraint=dist.constraints.simplex)
    means = pyro.param("means", torch.tensor([-1.0, 0.2, 1.0]))
    with pyro.plate("data", len(y), dim=-1):
        z: Any = 0
        for t in pyro.markov(range(y.shape[1])):
            state = dist.Categorical(rows[z])
            z = pyro.sample(f"z_{t}", state, infer={"enumerate": "parallel"})
            pyro.sample(f"y_{t}", dist.Normal(means[z], 1.0), obs=y[:, t])


def topics(y: Tensor) -> None:
    """A loop over continuous latents, and one over the columns that they explain."""
    center = [pyro.sample(f"c_{k}", dist.Normal(0.0, 2.0)) for k in range(12)]
    with pyro.plate("data", len(y), dim=-1):
        for k in range(12):
            pyro.sample(f"y_{k}", dist.Normal(center[k], 1.0), obs=y[:, k])


def topics_guide(y: Tensor) -> None:
    for k in range(12):
        mean = pyro.param(f"mean_{k}", torch.tensor(0.1 * k))
        pyro.sample(f"c_{k}", dist.Normal(mean, 0.5))


def nothing(y: Tensor) -> None:
    pass


PROGRAMS: dict[str, Any] = {
    "chain": (chain, nothing, TraceEnum_ELBO),
    "topics": (topics, topics_guide, Trace_ELBO),
}


def steps(
    name: str, level: Any, length: int = 12, passes: Any = (FUSION,)
) -> tuple[list[float], Any]:
    model, guide, loss = PROGRAMS[name]
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    y = torch.randn(5, length)
    optimizer = pyro.optim.Adam({"lr": 0.05})
    svi: Any = SVI(model, guide, optimizer, loss())
    if level is not None:
        svi = CompiledSVI(model, guide, optimizer, loss(), engine=level, passes=passes)
    return [svi.step(y) for _ in range(15)], svi


def num_nodes(svi: CompiledSVI) -> int:
    (recording,) = svi.training_step.gradient.recordings
    return len(recording.module.graph.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_captured_svi_with_fusion_takes_pyros_steps(name: str) -> None:
    losses, svi = steps(name, "captured")
    assert losses == pytest.approx(steps(name, None)[0], rel=1e-5)
    assert num_nodes(svi) < 0.8 * num_nodes(steps(name, "captured", passes=())[1])


@pytest.mark.slow
def test_compiled_svi_with_fusion_takes_pyros_steps() -> None:
    losses, svi = steps("chain", "compiled")
    assert svi.level == "compiled"
    assert losses == pytest.approx(steps("chain", None)[0], rel=1e-5)


@pytest.mark.slow
def test_fused_graph_of_a_chain_grows_by_halvings_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markov_chains, "MAX_UNROLLED", 8)
    short, long = (num_nodes(steps("chain", "captured", length)[1]) for length in (17, 65))
    assert long < short + 160  # two more halvings, and not 48 more steps
