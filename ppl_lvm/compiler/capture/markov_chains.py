"""Eliminate Markov chains of discrete variables from both ends.

An enumerated Markov chain z_1, …, z_T leaves factors of one variable or of two neighbors. Pyro
contracts them one by one, in an order that `opt_einsum` finds: some forty small operations a step,
each in another layout. Here every step becomes one matrix

    F_t[i, j] = Σ (factors of z_{t-1} = i, z_t = j) + Σ (factors of z_t = j),

and two messages meet in the middle, forward α and backward β, advanced together in T/2 isomorphic
steps:

    α_t[j] = log Σ_i exp(α_{t-1}[i] + F_t[i, j]),  β_{t-1}[i] = log Σ_j exp(F_t[i, j] + β_t[j]).

That is S² exponentials a step. Where T is so large that the graph would grow too long, neighboring
matrices are first multiplied in pairs, all pairs at once, at S³ a product. The sum is Pyro's in
another order: results agree to rounding.

Reference:
    Särkkä, García-Fernández (2021). Temporal parallelization of Bayesian smoothers.
    https://arxiv.org/abs/1905.13002
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from pyro.distributions.hmm import _logmatmulexp
from pyro.ops.rings import LogRing, SampleRing
from torch import Tensor

_MIN_VARIABLES = 4  # with fewer there is nothing to gain
_MAX_STATES = 32  # with more, a matrix for every row costs more than Pyro's T steps
MAX_UNROLLED = 64  # matrices that the messages pass one by one; more are multiplied in pairs first


@contextmanager
def fast_markov_elimination() -> Iterator[None]:
    """Let Pyro's contraction in log space eliminate chains by `eliminate_chain`."""
    pyro_sumproduct = LogRing.sumproduct

    def sumproduct(ring: LogRing, terms: Sequence[Any], dims: set[str]) -> Any:
        plain = type(ring) in (LogRing, SampleRing)  # Pyro's bounds use both to sum, and only that
        plain = plain and not any(hasattr(term, "_pyro_backward") for term in terms)
        total = eliminate_chain(terms, set(dims), MAX_UNROLLED) if plain else None
        return pyro_sumproduct(ring, terms, dims) if total is None else total

    with patch.object(LogRing, "sumproduct", sumproduct):
        yield


def eliminate_chain(terms: Sequence[Any], dims: set[str], max_unrolled: int = MAX_UNROLLED) -> Any:
    """The log of the sum over `dims` of the product of packed `terms`, None if they are no chain.

    Terms carry in `_pyro_dims` one letter per dimension, as Pyro's packed tensors do. So does the
    result, whose dimensions are the remaining letters, sorted.

    Args:
        max_unrolled: matrices that the messages pass one by one.
    """
    sizes = {d: n for term in terms for d, n in zip(term._pyro_dims, term.shape, strict=True)}
    order = chain_order([term._pyro_dims for term in terms], dims)
    states = {sizes[d] for d in dims}
    if order is None or len(states) != 1 or next(iter(states)) > _MAX_STATES:
        return None
    rest = "".join(sorted(sizes.keys() - dims))
    place = {d: i for i, d in enumerate(order)}
    first: list[Tensor] = []
    steps: list[list[Tensor]] = [[] for _ in order[1:]]
    for term in terms:
        variables = sorted((d for d in term._pyro_dims if d in dims), key=place.__getitem__)
        last = place[variables[-1]]
        if last == 0:
            first.append(_aligned(term, variables[0] + rest))
        else:
            before = variables[0] if len(variables) == 2 else "\0"  # a dimension of size 1
            steps[last - 1].append(_aligned(term, before + variables[-1] + rest))
    shape = [*states, *states, *(sizes[d] for d in rest)]
    matrices = torch.stack([_sum(step).expand(shape) for step in steps])  # (T-1, S, S, *rest)
    start = _sum(first).expand(shape[1:]) if first else matrices.new_zeros(shape[1:])
    while len(matrices) > max_unrolled:
        matrices = _multiply_pairs(matrices)
    result: Any = _pass_from_both_ends(start, matrices)
    result._pyro_dims = rest
    return result


# States come first, then all else: rows are contiguous, as vector instructions require.


def _pass_from_both_ends(start: Tensor, matrices: Tensor) -> Tensor:
    """log Σ exp of `start` (S, …) times all matrices (T, S, S, …), summed over the last state."""
    if len(matrices) % 2:
        start, matrices = _pass_message(start, matrices[0]), matrices[1:]
    front, back = matrices.chunk(2)
    both = torch.stack([front, back.flip(0).transpose(1, 2)], 3)  # (T/2, S, S, 2, …)
    messages = torch.stack([start, torch.zeros_like(start)], 1)  # (S, 2, …)
    for step in both.unbind():
        messages = _pass_message(messages, step)
    total = messages.sum(1)
    return _pass_message(total, torch.zeros_like(total).unsqueeze(1)).squeeze(0)


def _pass_message(message: Tensor, matrix: Tensor) -> Tensor:
    """log Σ_i exp(message[i] + matrix[i, j]); -∞, with gradient 0, where no i is possible."""
    terms = message.unsqueeze(1) + matrix
    largest = terms.detach().amax(0, keepdim=True).clamp(min=torch.finfo(terms.dtype).min)
    total = (terms - largest).exp().sum(0)  # at least 1: the largest term's
    possible = total.clamp(min=1).log() + largest.squeeze(0)
    return torch.where(total == 0, -torch.inf, possible)


def _multiply_pairs(matrices: Tensor) -> Tensor:
    """Multiply neighbors in pairs; the last of an odd number stays."""
    even = len(matrices) // 2 * 2
    left, right = [m.movedim((1, 2), (-2, -1)) for m in (matrices[0:even:2], matrices[1:even:2])]
    products = _logmatmulexp(left, right).movedim((-2, -1), (1, 2))
    return torch.cat([products, matrices[even:]])


def chain_order(names: Sequence[str], dims: set[str]) -> list[str] | None:
    """The variables `dims` from one end of their chain to the other, None if they form no chain.

    `names` are the letters of each factor.
    """
    neighbors: dict[str, set[str]] = {d: set() for d in dims}
    for name in names:
        variables = [d for d in name if d in dims]
        if not 1 <= len(variables) <= 2:
            return None
        if len(variables) == 2:
            neighbors[variables[0]].add(variables[1])
            neighbors[variables[1]].add(variables[0])
    ends = sorted(d for d, near in neighbors.items() if len(near) == 1)
    if len(dims) < _MIN_VARIABLES or len(ends) != 2 or any(len(n) > 2 for n in neighbors.values()):
        return None
    order = [ends[0]]
    while order[-1] != ends[1]:
        order.append(next(d for d in neighbors[order[-1]] if d not in order[-2:]))
    return order if len(order) == len(dims) else None


def _aligned(term: Any, letters: str) -> Tensor:
    """The term with its dimensions in the order of `letters`, size 1 where it lacks one."""
    present = [d for d in letters if d in term._pyro_dims]
    tensor = term.permute([term._pyro_dims.index(d) for d in present])
    sizes = dict(zip(present, tensor.shape, strict=True))
    aligned: Tensor = tensor.view([sizes.get(d, 1) for d in letters])
    return aligned


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
