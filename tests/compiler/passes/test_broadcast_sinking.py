"""Sunk broadcasts: the same results, computed once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_lvm.compiler.passes import BroadcastSinking

aten = torch.ops.aten
ROWS = 11


@pytest.fixture(autouse=True)
def _doubles() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


def sink(function: Callable[..., Any], *inputs: Tensor, constants: Any = ()) -> Any:
    """The graph of a function after broadcast sinking; it returns a tuple."""

    def listed(*inputs: Tensor) -> tuple[Tensor, ...]:
        results = function(*inputs)
        return (results,) if isinstance(results, Tensor) else tuple(results)

    sunk = BroadcastSinking().apply(make_fx(listed)(*inputs, *constants), inputs, constants)
    assert sunk is not None
    assert not sunk.constants
    return sunk.module


def sizes(graph: Any, op: Any) -> list[tuple[int, ...]]:
    """Shapes of the results of an operation in a graph."""
    results = [n.meta["val"] for n in graph.graph.nodes if n.target is op]
    return [tuple(value.shape) for value in results]


def with_gradient(function: Callable[..., Tensor], *places: int) -> Callable[..., Any]:
    """The function's sum and its gradients by the arguments in these places."""

    def both(*inputs: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() if i in places else x for i, x in enumerate(inputs)]
        total = function(*leaves).sum()
        gradients = torch.autograd.grad(total, [leaves[i] for i in places])
        return [total.detach(), *gradients]

    return both


def normal(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    loc, scale = loc.expand(x.shape), log_scale.expand(x.shape).exp()
    return -((x - loc) ** 2) / (2 * scale**2) - scale.log()


def normal_of_one_scale(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    return normal(x, loc, log_scale.mean())


def table(x: Tensor, loc: Tensor, logits: Tensor) -> Tensor:
    """As a categorical distribution in a plate: clamped probabilities, rows contiguous."""
    probs = logits.softmax(-1).expand(ROWS, 4).clamp(1e-7, 1 - 1e-7)
    return torch.where(x > 0, probs.log().unsqueeze(1).transpose(0, 2).squeeze(1).t(), loc)


def chain(x: Tensor, loc: Tensor, logits: Tensor) -> Tensor:
    """Two indices, rows in the middle, views between."""
    both = (logits[:, None] * logits).softmax(-1)
    log = both.view(4, 1, 4).expand(4, ROWS, 4).clamp(0.01, 0.9).log()
    wide = log.view(1, 4, ROWS, 4).transpose(0, 3).squeeze(-1).permute(2, 1, 0)
    return (wide + x.unsqueeze(-1)).logsumexp(-1) * loc


DENSITIES = [normal, normal_of_one_scale, table, chain]


def random_inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(ROWS, 4), torch.randn(4), torch.randn(4)


@pytest.mark.parametrize("density", DENSITIES)
def test_densities_and_their_gradients_are_unchanged(density: Callable[..., Tensor]) -> None:
    function = with_gradient(density, 1, 2)
    graph = sink(function, *random_inputs())
    inputs = random_inputs()  # other numbers than those of the trace
    for actual, expected in zip(graph(*inputs), function(*inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("density", "op", "size"),
    [
        (normal, aten.exp.default, 4),
        (normal_of_one_scale, aten.exp.default, 1),
        (table, aten.clamp.default, 4),
        (chain, aten.clamp.default, 16),
    ],
)
def test_pointwise_operation_on_a_broadcast_tensor_is_computed_once(
    density: Any, op: Any, size: int
) -> None:
    before = make_fx(density, tracing_mode="fake")(*random_inputs())
    after = sink(density, *random_inputs())
    assert [torch.Size(s).numel() for s in sizes(after, op)] == [size]
    assert [torch.Size(s).numel() for s in sizes(before, op)] != [size]


def test_gradient_is_summed_before_it_is_multiplied() -> None:
    def gradient(g: Tensor, c: Tensor) -> Tensor:
        wide = c.expand(ROWS, 4)
        masked = torch.where(wide > 0, g / wide, 0.0)
        return (masked.neg() * 2.0).sum([0], keepdim=True)

    g, c = torch.randn(ROWS, 4), torch.randn(4)
    graph = sink(gradient, g, c)
    assert sizes(graph, aten.div.Tensor) == [(1, 4)]
    torch.testing.assert_close(graph(g, c)[0], gradient(g, c), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [[0], [1], [2], [0, 1], [0, 2], [-1, 0], [0, 1, 2]])
@pytest.mark.parametrize("keepdim", [True, False])
def test_sum_moves_before_a_factor_only_along_its_constant_dimensions(
    dims: list[int], keepdim: bool
) -> None:
    """A factor that varies along the dimension has to be inside the sum."""

    def scaled(g: Tensor, c: Tensor, d: Tensor) -> Tensor:
        product = g * c.view(1, 4, 1).expand(ROWS, 4, 3) / d.view(1, 4, 3).expand(ROWS, 4, 3)
        return product.sum(dims, keepdim)

    def repeated(g: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return (c.view(1, 4, 1).expand(ROWS, 4, 3) * 3).sum(dims, keepdim)

    inputs = torch.randn(ROWS, 4, 3), torch.randn(4), torch.randn(4, 3)
    for function in (scaled, repeated):
        actual, expected = sink(function, *inputs)(*inputs)[0], function(*inputs)
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_sum_of_broadcast_booleans_counts_every_row() -> None:
    def count(bits: Tensor) -> Tensor:
        return (bits.expand(ROWS, 4) > 0).sum()

    bits = torch.tensor([1.0, 0.0, 2.0, -1.0])
    assert torch.equal(sink(count, bits)(bits)[0], torch.tensor(2 * ROWS))


def test_mask_is_a_factor_only_if_it_fills_in_zero() -> None:
    def filled(g: Tensor, c: Tensor, other: Tensor) -> Tensor:
        return torch.where(c.expand(ROWS, 4) > 0, g, other).sum(0)

    inputs = torch.randn(ROWS, 4), torch.randn(4), torch.tensor(0.5)
    torch.testing.assert_close(sink(filled, *inputs)(*inputs)[0], filled(*inputs))
    zero = torch.zeros(())
    graph = sink(filled, *inputs[:2], constants=[zero])
    assert sizes(graph, aten.where.self) == [(1, 4)]
    torch.testing.assert_close(graph(*inputs[:2], zero)[0], filled(*inputs[:2], zero))


def test_draws_are_unchanged() -> None:
    def draw(loc: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        loc, wide = loc.expand(ROWS, 4) * 2, scale.unsqueeze(-1).expand(4, ROWS).exp().t()
        noise = torch.randn_like(wide)
        return torch.normal(loc, wide), torch.bernoulli(wide / (1 + wide)), loc + wide * noise

    inputs = torch.randn(4), torch.randn(4)
    graph = sink(draw, *inputs)
    torch.manual_seed(3)
    expected = draw(*inputs)
    torch.manual_seed(3)
    for a, b in zip(graph(*inputs), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


def test_view_that_a_broadcast_tensor_does_not_allow_is_a_copy() -> None:
    def flat(c: Tensor) -> Tensor:
        return (c.expand(ROWS, 4) + 1).view(ROWS * 4).cumsum(0)

    c = torch.randn(4)
    torch.testing.assert_close(sink(flat, c)(c)[0], flat(c))


def test_graph_that_changes_an_input_is_left_alone() -> None:
    def change(c: Tensor) -> Tensor:
        return c.add_(1).expand(ROWS, 4).exp()

    module = make_fx(change)(torch.zeros(4))
    assert BroadcastSinking().apply(module, [torch.zeros(4)], []) is None
