"""Decompositions give the numbers of the operations that they replace."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_lvm.compiler.backend.decompositions import DECOMPOSITIONS
from ppl_lvm.compiler.backend.inductor import compile_graph

aten = torch.ops.aten


def decompose(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """The graph of a function with decompositions."""
    return make_fx(function, decomposition_table=DECOMPOSITIONS)(*inputs)


def operations(graph: Any) -> set[Any]:
    return {node.target for node in graph.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("unitriangular", [False, True])
@pytest.mark.parametrize("shapes", [((4, 4), (4, 3)), ((2, 1, 4, 4), (5, 4, 1)), ((1, 1), (1, 2))])
def test_small_triangular_system_is_solved_by_substitution(
    upper: bool, unitriangular: bool, shapes: tuple[Any, Any]
) -> None:
    torch.manual_seed(0)
    a, b = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    a = a + 3 * torch.eye(a.shape[-1], dtype=torch.float64)  # the other triangle is not read

    def solve(a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(a, b, upper=upper, unitriangular=unitriangular)

    graph = decompose(solve, a, b)
    assert aten.linalg_solve_triangular.default not in operations(graph)
    torch.testing.assert_close(graph(a, b), solve(a, b), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("upper", [False, True])
def test_small_triangular_system_from_the_right_is_solved_by_substitution(upper: bool) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 3) + 3 * torch.eye(3), torch.randn(2, 5, 3)

    def solve(a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(a, b, upper=upper, left=False)

    graph = decompose(solve, a, b)
    assert aten.linalg_solve_triangular.default not in operations(graph)
    torch.testing.assert_close(graph(a, b), solve(a, b))


def test_large_triangular_system_is_left_alone() -> None:
    a, b = torch.eye(7) + 1, torch.ones(7, 7)
    graph = decompose(lambda a, b: torch.linalg.solve_triangular(a, b, upper=True), a, b)
    assert aten.linalg_solve_triangular.default in operations(graph)


def test_outer_product_becomes_no_matrix_product() -> None:
    torch.manual_seed(0)
    column, row, square = torch.randn(5, 4, 1), torch.randn(5, 1, 3), torch.randn(4, 4)

    def function(column: Tensor, row: Tensor, square: Tensor) -> Tensor:
        return torch.bmm(column, row) + torch.mm(column[0], row[0]) + torch.mm(square, column[1])

    graph = decompose(function, column, row, square)
    products = [n for n in graph.graph.nodes if n.target in (aten.mm.default, aten.bmm.default)]
    assert len(products) == 1
    torch.testing.assert_close(graph(column, row, square), function(column, row, square))


@pytest.mark.parametrize(
    ("shapes", "plain"),
    [
        (((3, 4, 4), (3, 4, 4)), True),
        (((3, 150, 5), (3, 5, 4)), True),
        (((3, 4, 9), (3, 9, 4)), False),
        (((30, 150, 5), (30, 5, 4)), False),
    ],
)
def test_batched_product_of_small_matrices_becomes_a_sum(
    shapes: tuple[Any, Any], plain: bool
) -> None:
    torch.manual_seed(0)
    a, b = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    graph = decompose(torch.bmm, a, b.mT.contiguous().mT)
    assert (aten.bmm.default not in operations(graph)) == plain
    torch.testing.assert_close(graph(a, b), torch.bmm(a, b), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "swapped"),
    [((40, 9, 8), True), ((40, 9, 16), False), ((5, 9, 8), False), ((40, 9, 1), False)],
)
def test_product_with_few_columns_is_computed_as_its_transpose(
    shape: tuple[int, int, int], swapped: bool
) -> None:
    torch.manual_seed(0)
    m, k, n = shape
    a, b = torch.randn(m, k), torch.randn(k, n)
    graph = decompose(lambda a, b: a @ b, a, b)
    (product,) = [node for node in graph.graph.nodes if node.target is aten.mm.default]
    assert (product.args[0].op != "placeholder") == swapped
    assert graph(a, b).is_contiguous()  # `*_like` draws take their numbers in this order
    torch.testing.assert_close(graph(a, b), a @ b)


@pytest.mark.parametrize("index", [torch.tensor(4), torch.tensor([[0, -1], [5, 2]])])
def test_take_reads_no_index_into_python(index: Tensor) -> None:
    table = torch.arange(6.0).view(2, 3).t()
    graph = make_fx(torch.take, decomposition_table=DECOMPOSITIONS, tracing_mode="fake")(
        table, index
    )
    assert torch.equal(graph(table, index), torch.take(table, index))
    assert operations(graph) <= {aten.view.default, aten.clone.default, aten.index.Tensor} | {
        aten._unsafe_view.default
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_isnan_becomes_a_comparison(dtype: torch.dtype) -> None:
    values = [1.0, torch.nan, torch.inf, -torch.inf] if dtype.is_floating_point else [0, 7]
    x = torch.tensor(values, dtype=dtype)
    graph = decompose(torch.isnan, x)
    assert operations(graph) == {aten.ne.Tensor}
    assert torch.equal(graph(x), torch.isnan(x))


def test_addmm_and_foreach_norm_are_decomposed() -> None:
    torch.manual_seed(0)
    c, a, b = torch.randn(5), torch.randn(3, 4), torch.randn(4, 5)

    def function(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        norms = torch._foreach_norm([a, b.sum()], 1.0)
        return torch.addmm(c, a, b, beta=0.5, alpha=2.0) + torch.addmm(c, a, b) + sum(norms)

    graph = decompose(function, c, a, b)
    assert not operations(graph) & {aten.addmm.default, aten._foreach_norm.Scalar}
    torch.testing.assert_close(graph(c, a, b), function(c, a, b))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_bernoulli_draws_the_eager_numbers(dtype: torch.dtype) -> None:
    p = torch.full((24, 3), 0.5, dtype=dtype)
    function: Any = lambda p: (torch.bernoulli(p) + 0,)  # noqa: E731
    compiled = compile_graph(decompose(function, p), [p], True)
    values = []
    for draw in (function, compiled):
        torch.manual_seed(0)
        values.append(draw(p)[0])
    assert torch.equal(*values)


@pytest.mark.parametrize(("device", "remains"), [("cpu", True), ("meta", False)])
def test_bernoulli_of_a_gpu_is_not_compiled(device: str, remains: bool) -> None:
    """Only a GPU shows which numbers it takes; any device but the CPU stands for it here."""
    graph = decompose(lambda p: (torch.bernoulli(p),), torch.full((3,), 0.5, device=device))
    assert (aten.bernoulli.default in operations(graph)) == remains


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "gamma": lambda p: torch._standard_gamma(p),
    "Poisson": lambda p: torch.poisson(p),
    "binomial": lambda p: torch.binomial(torch.full_like(p, 9.0), p.clamp(max=0.9)),
    "normal": lambda p: torch.normal(p, p),
    "normal of a number": lambda p: torch.normal(1.0, p),
    "rand_like": lambda p: torch.rand_like(p) * p,
    "randn_like": lambda p: torch.randn_like(p) * p,
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("layout", ["by rows", "by columns", "expanded", "a number"])
def test_draws_by_rows_are_the_eager_draws(name: str, layout: str) -> None:
    torch.manual_seed(0)
    p = torch.rand(6, 5) + 0.5
    p = {"by rows": p, "by columns": p.t(), "expanded": p.expand(3, 6, 5), "a number": p[0, 0]}[
        layout
    ]
    graph, values = decompose(DRAWS[name], p), []
    for draw in (DRAWS[name], graph):
        torch.manual_seed(0)
        values.append(draw(p))
    assert torch.equal(*values)
    assert values[0].stride() == values[1].stride()


@pytest.mark.slow
def test_compiled_draws_do_not_depend_on_the_layout_of_a_product() -> None:
    """With few columns its transpose is computed, and the compiler may keep that layout."""
    torch.manual_seed(0)
    a, b = torch.randn(40, 9, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)

    def function(a: Tensor, b: Tensor) -> list[Tensor]:
        return [draw((a @ b).exp()) + 0 for draw in DRAWS.values()]

    graph = make_fx(function, decomposition_table=DECOMPOSITIONS, tracing_mode="fake")(a, b)
    compiled, values = compile_graph(graph, [a, b], True), []
    for draw in (function, compiled):
        torch.manual_seed(0)
        values.append(draw(a, b))
    for actual, expected in zip(*values, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_operation_that_returns_a_list_of_one_is_called_from_python() -> None:
    """From C++ torch 2.13 mistakes the list for a tensor, and the process dies."""
    p = torch.tensor([3.0, -4.0])
    function: Any = lambda p: (torch._foreach_norm([p * 2])[0] + 0,)  # noqa: E731
    graph = make_fx(function)(p)
    assert aten._foreach_norm.Scalar in operations(graph)
    assert float(compile_graph(graph, [p], True)(p)[0]) == pytest.approx(10.0)
