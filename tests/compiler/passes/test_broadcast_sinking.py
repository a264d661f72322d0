"""What is repeated and computed once is what it was, and is computed once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_lvm.compiler.passes.broadcast_sinking import repeated_once

aten = torch.ops.aten
ROWS = 11


@pytest.fixture(autouse=True)
def _doubles() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


def once(function: Callable[..., Any], *inputs: Tensor, zeros: Any = ()) -> Any:
    """The graph of a function after what is repeated is computed once; it returns a tuple."""

    def listed(*inputs: Tensor) -> tuple[Tensor, ...]:
        found = function(*inputs)
        return (found,) if isinstance(found, Tensor) else tuple(found)

    return make_fx(repeated_once(make_fx(listed)(*inputs), zeros))(*inputs)


def sizes(graph: Any, op: Any) -> list[tuple[int, ...]]:
    """Of the results of an operation in a graph."""
    found = [n.meta["tensor_meta"] for n in graph.graph.nodes if n.target is op]
    return [tuple(value.shape) for value in found]


def with_gradient(function: Callable[..., Tensor], *wanted: int) -> Callable[..., Any]:
    """The function's sum and its gradients by the arguments in the places `wanted`."""

    def both(*inputs: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() if i in wanted else x for i, x in enumerate(inputs)]
        total = function(*leaves).sum()
        gradients = torch.autograd.grad(total, [leaves[i] for i in wanted])
        return [total.detach(), *gradients]

    return both


def normal(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    loc, scale = loc.expand(x.shape), log_scale.expand(x.shape).exp()
    return -((x - loc) ** 2) / (2 * scale**2) - scale.log()


def normal_of_one_scale(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    return normal(x, loc, log_scale.mean())


def table(x: Tensor, loc: Tensor, logits: Tensor) -> Tensor:
    """As a categorical distribution in a plate: probabilities clamped, rows side by side."""
    probs = logits.softmax(-1).expand(ROWS, 4).clamp(1e-7, 1 - 1e-7)
    return torch.where(x > 0, probs.log().unsqueeze(1).transpose(0, 2).squeeze(1).t(), loc)


def chain(x: Tensor, loc: Tensor, logits: Tensor) -> Tensor:
    """Two indices, rows in the middle, views between."""
    both = (logits[:, None] * logits).softmax(-1)
    log = both.view(4, 1, 4).expand(4, ROWS, 4).clamp(0.01, 0.9).log()
    wide = log.view(1, 4, ROWS, 4).transpose(0, 3).squeeze(-1).permute(2, 1, 0)
    return (wide + x.unsqueeze(-1)).logsumexp(-1) * loc


DENSITIES = [normal, normal_of_one_scale, table, chain]


def given() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(ROWS, 4), torch.randn(4), torch.randn(4)


@pytest.mark.parametrize("density", DENSITIES)
def test_densities_and_their_gradients_stay(density: Callable[..., Tensor]) -> None:
    function = with_gradient(density, 1, 2)
    graph = once(function, *given())
    inputs = given()  # other numbers than those it was traced with
    for found, wanted in zip(graph(*inputs), function(*inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("density", "op", "size"),
    [
        (normal, aten.exp.default, 4),
        (normal_of_one_scale, aten.exp.default, 1),
        (table, aten.clamp.default, 4),
        (chain, aten.clamp.default, 16),
    ],
)
def test_logarithms_are_taken_once(density: Any, op: Any, size: int) -> None:
    before = make_fx(density)(*given())
    after = once(density, *given())
    assert [torch.Size(s).numel() for s in sizes(after, op)] == [size]
    assert [torch.Size(s).numel() for s in sizes(before, op)] != [size]


def test_a_gradient_is_summed_before_it_is_multiplied() -> None:
    def gradient(g: Tensor, c: Tensor) -> Tensor:
        wide = c.expand(ROWS, 4)
        masked = torch.where(wide > 0, g / wide, 0.0)
        return (masked.neg() * 2.0).sum([0], keepdim=True)

    g, c = torch.randn(ROWS, 4), torch.randn(4)
    graph = once(gradient, g, c)
    assert sizes(graph, aten.div.Tensor) == [(1, 4)]
    torch.testing.assert_close(graph(g, c)[0], gradient(g, c), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [[0], [1], [2], [0, 1], [0, 2], [-1, 0], [0, 1, 2]])
@pytest.mark.parametrize("keepdim", [True, False])
def test_only_over_what_a_factor_does_not_change_along(dims: list[int], keepdim: bool) -> None:
    """To take one that does before the sum would be another number."""

    def scaled(g: Tensor, c: Tensor, d: Tensor) -> Tensor:
        product = g * c.view(1, 4, 1).expand(ROWS, 4, 3) / d.view(1, 4, 3).expand(ROWS, 4, 3)
        return product.sum(dims, keepdim)

    def repeated(g: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return (c.view(1, 4, 1).expand(ROWS, 4, 3) * 3).sum(dims, keepdim)

    inputs = torch.randn(ROWS, 4, 3), torch.randn(4), torch.randn(4, 3)
    for function in (scaled, repeated):
        found, wanted = once(function, *inputs)(*inputs)[0], function(*inputs)
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_numbers_of_repeated_bits_are_counted() -> None:
    def count(bits: Tensor) -> Tensor:
        return (bits.expand(ROWS, 4) > 0).sum()

    bits = torch.tensor([1.0, 0.0, 2.0, -1.0])
    assert torch.equal(once(count, bits)(bits)[0], torch.tensor(2 * ROWS))


def test_a_mask_that_fills_in_another_number_is_no_factor() -> None:
    def filled(g: Tensor, c: Tensor, other: Tensor) -> Tensor:
        return torch.where(c.expand(ROWS, 4) > 0, g, other).sum(0)

    inputs = torch.randn(ROWS, 4), torch.randn(4), torch.tensor(0.5)
    torch.testing.assert_close(once(filled, *inputs)(*inputs)[0], filled(*inputs))
    zero = torch.zeros(())
    graph = once(filled, *inputs[:2], zero, zeros=[True])  # a constant, known to be 0
    assert sizes(graph, aten.where.self) == [(1, 4)]
    torch.testing.assert_close(graph(*inputs[:2], zero)[0], filled(*inputs[:2], zero))


def test_draws_are_those_that_would_have_been_drawn() -> None:
    def drawn(loc: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        loc, wide = loc.expand(ROWS, 4) * 2, scale.unsqueeze(-1).expand(4, ROWS).exp().t()
        noise = torch.randn_like(wide)
        return torch.normal(loc, wide), torch.bernoulli(wide / (1 + wide)), loc + wide * noise

    inputs = torch.randn(4), torch.randn(4)
    graph = once(drawn, *inputs)
    torch.manual_seed(3)
    wanted = drawn(*inputs)
    torch.manual_seed(3)
    for a, b in zip(graph(*inputs), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


def test_a_view_that_a_repeated_tensor_cannot_have_is_a_copy() -> None:
    def flat(c: Tensor) -> Tensor:
        return (c.expand(ROWS, 4) + 1).view(ROWS * 4).cumsum(0)

    c = torch.randn(4)
    torch.testing.assert_close(once(flat, c)(c)[0], flat(c))


def test_a_graph_that_changes_what_others_see_is_left_alone() -> None:
    def changed(c: Tensor) -> Tensor:
        return c.add_(1).expand(ROWS, 4).exp()

    module = make_fx(changed)(torch.zeros(4))
    assert repeated_once(module, ()) is module
