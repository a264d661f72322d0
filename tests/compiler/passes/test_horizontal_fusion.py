"""Operations taken together compute what they computed one by one."""

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
from ppl_lvm.compiler.capture import markov_chains as chains
from ppl_lvm.compiler.graph.functionalize import functional
from ppl_lvm.compiler.passes import horizontal_fusion as alike


@pytest.fixture(autouse=True)
def _short_graphs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alike, "_LONG", 0)
    monkeypatch.setattr(alike, "_GAIN", 10.0)


def graph(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    found: fx.GraphModule = make_fx(function)(*inputs)
    return found


def together(whole: fx.GraphModule, *inputs: Tensor, constants: Any = ()) -> Any:
    """The merged graph as a function of the inputs, and the graph."""
    found = alike.fuse_isomorphic_ops(whole, inputs, constants)
    assert found is not None
    return (lambda *given: found.module(*given, *constants, *found.orders)), found.module


def loop(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """Every kind of meeting: shared, sliced, stacked, added up, several results, constants."""
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


def test_a_loop_of_every_kind() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(15, 12), torch.randn(15)
    whole = graph(loop, x, w)
    short, module = together(whole, x, w)
    torch.manual_seed(1)
    x, w = torch.randn(15, 12), torch.randn(15)  # other numbers than those it was traced with
    for a, b in zip(short(x, w), loop(x, w), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert _count(module, torch.ops.aten.exp.default) == 1
    assert _count(module, torch.ops.aten.sin.default) == 1
    assert _count(whole, torch.ops.aten.exp.default) == 12


def _count(module: fx.GraphModule, op: Any) -> int:
    return sum(node.target is op for node in module.graph.nodes)


def test_equal_constants_are_one_and_unequal_ones_are_not() -> None:
    def scaled(x: Tensor, *constants: Tensor) -> tuple[Tensor, ...]:
        return tuple((x * c).tanh() for c in constants)

    x = torch.randn(7)
    constants = [torch.tensor(v) for v in (2.0, 2.0, 3.0, 2.0, 3.0)]
    short, module = together(graph(scaled, x, *constants), x, constants=constants)
    assert _count(module, torch.ops.aten.tanh.default) == 2
    for a, b in zip(short(x), scaled(x, *constants), strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_added_up_is_not_put_in_order_first() -> None:
    def total(x: Tensor) -> tuple[Tensor, ...]:
        rows = [x[:, t].sin() for t in range(12)]
        found = rows[7]
        for t in (3, 11, 0, 4, 10, 5, 8, 1, 9, 2, 6):
            found = found + rows[t]
        return (found,)

    x = torch.randn(5, 12)
    short, module = together(graph(total, x), x)
    assert _count(module, torch.ops.aten.index_select.default) == 0
    torch.testing.assert_close(short(x), total(x))


def test_an_index_that_counts_is_the_same_by_whatever_views() -> None:
    """As the values of a variable that takes its place in two ways, at odd and at even steps."""

    def rows(x: Tensor) -> tuple[Tensor, ...]:
        values = [torch.arange(5), torch.arange(5)]
        ways = [values[0].view(-1, 1), values[1].view(-1, 1, 1, 1).view(5, 1)]
        other = torch.arange(5).view(1, 5)
        return (*(x[ways[t % 2]].exp() for t in range(6)), x[other].exp())

    x = torch.randn(5, 3)
    short, module = together(graph(rows, x), x)
    assert _count(module, torch.ops.aten.exp.default) == 2
    for a, b in zip(short(x), rows(x), strict=True):
        assert torch.equal(a, b)


def test_draws_stay_apart_and_in_order() -> None:
    def drawn(x: Tensor) -> tuple[Tensor, ...]:
        noise = [torch.randn(4) if t % 2 else torch.rand(4) for t in range(10)]
        return tuple((x * n).exp() for n in noise)

    x = torch.randn(4)
    short, _ = together(graph(drawn, x), x)
    torch.manual_seed(5)
    wanted = drawn(x)
    torch.manual_seed(5)
    for a, b in zip(short(x), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_a_change_in_place_that_nobody_else_sees_becomes_an_operation() -> None:
    def changed(x: Tensor) -> tuple[Tensor, ...]:
        return tuple((x + t).clamp_(min=0.5).mul_(2.0) for t in range(6))

    x = torch.randn(9)
    short, module = together(graph(changed, x), x)
    assert _count(module, torch.ops.aten.clamp.default) == 1
    for a, b in zip(short(x), changed(x), strict=True):
        torch.testing.assert_close(a, b)


def _on_an_input(x: Tensor) -> tuple[Tensor, ...]:
    x.mul_(2.0)
    return (x + 1,)


def _through_a_view(x: Tensor) -> tuple[Tensor, ...]:
    y = x + 1
    y[0].mul_(2.0)
    return (y,)


@pytest.mark.parametrize("function", [_on_an_input, _through_a_view])
def test_a_change_that_somebody_sees_leaves_the_graph_alone(function: Any) -> None:
    x = torch.randn(4)
    whole = graph(function, x.clone())
    assert functional(whole.graph) is None
    assert alike.fuse_isomorphic_ops(whole, [x], []) is None


def test_a_graph_that_hardly_shrinks_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alike, "_GAIN", 0.5)
    x = torch.randn(4)
    whole = graph(lambda x: (x.exp().sin().cos(),), x)
    assert alike.fuse_isomorphic_ops(whole, [x], []) is None


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
    """A loop over continuous latents, and one over what they explain."""
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


def steps(name: str, level: Any, length: int = 12) -> tuple[list[float], Any]:
    model, guide, loss = PROGRAMS[name]
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    y = torch.randn(5, length)
    optimizer = pyro.optim.Adam({"lr": 0.05})
    svi: Any = SVI(model, guide, optimizer, loss())
    if level is not None:
        svi = CompiledSVI(model, guide, optimizer, loss(), engine=level)
    return [svi.step(y) for _ in range(15)], svi


def nodes(svi: Any) -> int:
    (entry,) = svi._step.gradient._entries.values()
    return len(entry.recording.module.graph.nodes)


@pytest.mark.parametrize("name", PROGRAMS)
def test_captured_takes_pyros_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    got, svi = steps(name, "captured")
    assert got == pytest.approx(steps(name, None)[0], rel=1e-5)
    monkeypatch.setattr(alike, "_LONG", 10**9)
    assert nodes(svi) < 0.8 * nodes(steps(name, "captured")[1])


@pytest.mark.slow
def test_compiled_takes_pyros_steps() -> None:
    got, svi = steps("chain", "compiled")
    assert svi.level == "compiled"
    assert got == pytest.approx(steps("chain", None)[0], rel=1e-5)


def test_the_graph_of_a_chain_is_bounded_but_for_halvings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "_LONGEST", 8)
    short, long = (nodes(steps("chain", "captured", length)[1]) for length in (17, 65))
    assert long < short + 160  # two more halvings, and not 48 more steps
