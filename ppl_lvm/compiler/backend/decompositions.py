"""Decompositions into operations that Inductor can fuse."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
_NARROW = 16  # columns of a product below which its transpose is computed
_DRAWS = (
    _aten._standard_gamma.default,
    _aten.binomial.default,
    _aten.normal.Tensor_Tensor,
    _aten.normal.Tensor_float,
    _aten.normal.float_Tensor,
    _aten.poisson.default,
)
_DRAWS_LIKE = (_aten.rand_like.default, _aten.randn_like.default)
_INNER, _PRODUCTS = 8, 2**14  # of small products: those of an entry, and all
_ROWS = 6  # of a matrix up to which a triangular system is solved by substitution


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """β bias + α a b: as an operation by itself the sum fuses with the next one at no cost."""
    product = a @ b if alpha == 1 else alpha * (a @ b)
    return product + (bias if beta == 1 else beta * bias)


def _bernoulli(p: Tensor, *, generator: Any = None) -> Any:
    """Bernoulli draws by torch's kernel, in double precision and on a GPU.

    There Inductor's kernel takes other numbers from the generator. On a GPU each thread draws four
    numbers: for neighboring entries here, for distant ones in `rand`.
    """
    if p.dtype is not torch.float64 and p.device.type == "cpu":
        return NotImplemented
    return torch.empty_like(p).bernoulli_(p, generator=generator)


def _by_rows(draw: Any) -> Callable[..., Any]:
    """Numbers drawn in the order of rows, for any layout of the parameters.

    The compiler chooses the layout of the parameters and assumes that the result has the same,
    which is wrong: the step would end in an error. A single row has only one layout.
    """

    def by_rows(*arguments: Any, **options: Any) -> Any:
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        if all(tensor.dim() == 1 for tensor in tensors):
            return NotImplemented
        expanded = iter(torch.broadcast_tensors(*tensors))
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
        row = [next(expanded).reshape(-1) if isinstance(a, Tensor) else a for a in arguments]
        return draw(*row, **options).view(shape)

    return by_rows


def _like_by_rows(draw: Any) -> Callable[..., Any]:
    """The same for `*_like` operations, whose numbers follow the layout of the other tensor."""

    def by_rows(like: Tensor, *, memory_format: Any = None, **options: Any) -> Any:
        explicit = memory_format not in (None, torch.preserve_format)
        if explicit or like.dim() == 1 or not like.is_contiguous():
            return NotImplemented
        return draw(like.reshape(-1), **options).view(like.shape)

    return by_rows


def _outer(a: Tensor, b: Tensor) -> Any:
    """a b for an outer product: it needs no sum and fuses with its neighbors."""
    return a * b if a.shape[-1] == 1 else NotImplemented


def _bmm(a: Tensor, b: Tensor) -> Any:
    """a b as products and sums where a call of the library takes longer."""
    (batch, rows, inner), columns = a.shape, b.shape[-1]
    if 1 < inner <= _INNER and batch * rows * inner * columns <= _PRODUCTS:
        return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)
    return _outer(a, b)


def _mm(a: Tensor, b: Tensor) -> Any:
    """a b as (bᵀ aᵀ)ᵀ where it has few columns, in the layout of a b.

    A library that processes blocks of rows of the result is much faster for few long rows than for
    many short ones.
    """
    if 1 < b.shape[1] < min(_NARROW, a.shape[0]) and a.shape[1] > 1 and a.device.type == "cpu":
        return (b.t() @ a.t()).t().contiguous()
    return _outer(a, b)


def _take(table: Tensor, index: Tensor) -> Any:
    """`take` by an index: torch's decomposition reads the value of a single index."""
    return _aten.index.Tensor(table.reshape(-1), [index])


def _isnan(x: Tensor) -> Tensor:
    """Vectorized: Inductor's kernel tests number by number and takes five times as long."""
    return x != x


def _norms(tensors: list[Tensor], order: float = 2, dtype: Any = None) -> list[Tensor]:
    return [torch.linalg.vector_norm(tensor, order, dtype=dtype) for tensor in tensors]


def _solve_triangular(
    a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Any:
    """a⁻¹ b (or b a⁻¹) by substitution: a call of the library takes longer where a is small.

    a is (…, n, n) and b is (…, n, m), or (…, m, n) where a is on the right.
    """
    n = a.shape[-1]
    if n > _ROWS:
        return NotImplemented
    if not left:
        transposed = _solve_triangular(a.mT, b.mT, upper=not upper, unitriangular=unitriangular)
        return transposed.mT
    rows: dict[int, Tensor] = {}  # of the solution, (…, m) each
    for i in reversed(range(n)) if upper else range(n):
        remainder = b[..., i, :]
        for j, row in rows.items():
            remainder = remainder - a[..., i, j, None] * row
        rows[i] = remainder if unitriangular else remainder / a[..., i, i, None]
    shape = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return torch.stack([rows[i].expand(*shape, b.shape[-1]) for i in range(n)], -2)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _aten.addmm.default: _addmm,
    _aten.bernoulli.default: _bernoulli,
    _aten.bmm.default: _bmm,
    _aten.mm.default: _mm,
    _aten._foreach_norm.Scalar: _norms,
    _aten.isnan.default: _isnan,
    **{draw: _by_rows(draw) for draw in _DRAWS},
    **{draw: _like_by_rows(draw) for draw in _DRAWS_LIKE},
    _aten.linalg_solve_triangular.default: _solve_triangular,
    _aten.take.default: _take,
}
