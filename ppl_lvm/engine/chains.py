"""Sum a chain of discrete variables out by halving: log₂ T products of matrices, not T.

An enumerated Markov chain z_1, …, z_T leaves factors that touch one variable or two neighbours.
Pyro contracts them one by one, in an order that `opt_einsum` finds: some forty small operations a
step, each in another layout. Here every step becomes one matrix

    F_t[i, j] = Σ (factors of z_{t-1} = i, z_t = j) + Σ (factors of z_t = j),

and neighbours are multiplied in pairs, all pairs at once. The sum is the same; its order is not,
so that results agree to rounding.

Reference:
    Särkkä, García-Fernández (2021). Temporal parallelization of Bayesian smoothers.
    https://arxiv.org/abs/1905.13002
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from pyro.distributions.hmm import _logmatmulexp, _sequential_logmatmulexp
from pyro.ops.rings import LogRing, SampleRing
from torch import Tensor

_SHORTEST = 4  # variables; below that there is nothing to gain
_WIDEST = 32  # states; beyond, S³ for a product of matrices costs more than the handling of T steps


@contextmanager
def chains_halved() -> Iterator[None]:
    """Let Pyro's contraction in log space take chains this way, and all else its own."""
    theirs = LogRing.sumproduct

    def sumproduct(ring: LogRing, terms: Sequence[Any], dims: set[str]) -> Any:
        plain = type(ring) in (LogRing, SampleRing)  # Pyro's bounds use both to sum, and only that
        plain = plain and not any(hasattr(term, "_pyro_backward") for term in terms)
        found = sum_chain(terms, set(dims)) if plain else None
        return theirs(ring, terms, dims) if found is None else found

    with patch.object(LogRing, "sumproduct", sumproduct):
        yield


def sum_chain(terms: Sequence[Any], dims: set[str]) -> Any:
    """The log of the sum over `dims` of the product of packed `terms`, None if they are no chain.

    Terms carry in `_pyro_dims` one letter a dimension, as Pyro's packed tensors do; so does the
    result, whose dimensions are the letters left, sorted.
    """
    sizes = {d: n for term in terms for d, n in zip(term._pyro_dims, term.shape, strict=True)}
    order = chain_order([term._pyro_dims for term in terms], dims)
    states = {sizes[d] for d in dims}
    if order is None or len(states) != 1 or next(iter(states)) > _WIDEST:
        return None
    rest = "".join(sorted(sizes.keys() - dims))
    place = {d: i for i, d in enumerate(order)}
    first: list[Tensor] = []
    steps: list[list[Tensor]] = [[] for _ in order[1:]]
    for term in terms:
        own = sorted((d for d in term._pyro_dims if d in dims), key=place.__getitem__)
        at = place[own[-1]]
        if at == 0:
            first.append(_aligned(term, rest + own[0]))
        else:
            before = own[0] if len(own) == 2 else "\0"  # no letter: a dimension of size 1
            steps[at - 1].append(_aligned(term, rest + before + own[-1]))
    shape = [*(sizes[d] for d in rest), *states, *states]
    matrices = torch.stack([_sum(step).expand(shape) for step in steps], -3)  # (..., T-1, S, S)
    start = _sum(first).expand(shape[:-1]) if first else matrices.new_zeros(shape[:-1])
    ones = matrices.new_zeros(shape[-1], 1)
    product = _logmatmulexp(start.unsqueeze(-2), _sequential_logmatmulexp(matrices))
    result: Any = _logmatmulexp(product, ones)[..., 0, 0]
    result._pyro_dims = rest
    return result


def chain_order(names: Sequence[str], dims: set[str]) -> list[str] | None:
    """The variables `dims` from one end of their chain to the other, None if there is no chain.

    `names` are the letters of each factor.
    """
    neighbours: dict[str, set[str]] = {d: set() for d in dims}
    for name in names:
        own = [d for d in name if d in dims]
        if not 1 <= len(own) <= 2:
            return None
        if len(own) == 2:
            neighbours[own[0]].add(own[1])
            neighbours[own[1]].add(own[0])
    ends = sorted(d for d, near in neighbours.items() if len(near) == 1)
    if len(dims) < _SHORTEST or len(ends) != 2 or any(len(n) > 2 for n in neighbours.values()):
        return None
    order = [ends[0]]
    while order[-1] != ends[1]:
        order.append(next(d for d in neighbours[order[-1]] if d not in order[-2:]))
    return order if len(order) == len(dims) else None


def _aligned(term: Any, letters: str) -> Tensor:
    """The term with its dimensions in the order of `letters`, size 1 where it has none."""
    present = [d for d in letters if d in term._pyro_dims]
    tensor = term.permute([term._pyro_dims.index(d) for d in present])
    sizes = dict(zip(present, tensor.shape, strict=True))
    found: Tensor = tensor.view([sizes.get(d, 1) for d in letters])
    return found


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
