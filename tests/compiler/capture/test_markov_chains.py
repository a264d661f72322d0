"""Elimination of Markov chains against Pyro's contraction."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pyro.ops.rings import LogRing
from torch import Tensor

from ppl_lvm.compiler.capture.markov_chains import (
    chain_order,
    eliminate_chain,
    fast_markov_elimination,
)

# Letters: a, b, ... are the chain's variables, p and q are plates.
CHAINS = {
    "initial, transitions, emissions": ["ap", "abp", "bcp", "cdp", "dep", "ap", "bp", "cp", "ep"],
    "terms without the plates": ["a", "ab", "cbp", "cd", "edq", "cp", "eq"],
    "two factors between neighbors": ["ab", "ba", "bc", "cd", "d", "d"],
    "no initial factor": ["ab", "bc", "cd", "de", "ef", "fg", "gh"],
}
SIZES = {"p": 3, "q": 2}


def terms(names: Sequence[str], seed: int = 0) -> list[Any]:
    torch.manual_seed(seed)
    factors: list[Any] = []
    for name in names:
        shape = [SIZES.get(letter, 4) for letter in name]
        factors.append(torch.randn(shape, dtype=torch.float64, requires_grad=True))
        factors[-1]._pyro_dims = name
    return factors


def variables(names: Sequence[str]) -> set[str]:
    return set("".join(names)) - {"p", "q"}


@pytest.mark.parametrize("max_unrolled", [64, 2])
@pytest.mark.parametrize("case", CHAINS)
def test_eliminated_chain_has_pyros_sum_and_gradient(case: str, max_unrolled: int) -> None:
    """With 2 the chain is too long and is halved first."""
    names = CHAINS[case]
    ours, theirs = terms(names), terms(names)
    total = eliminate_chain(ours, variables(names), max_unrolled)
    expected = LogRing().sumproduct(theirs, variables(names))
    assert total._pyro_dims == expected._pyro_dims
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    weight = torch.rand_like(total)
    gradients = torch.autograd.grad((weight * total).sum(), ours)
    expected_gradients = torch.autograd.grad((weight * expected).sum(), theirs)
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_impossible_states_leave_finite_gradients() -> None:
    names = ["a", "ab", "bc", "cd", "de"]
    factors = terms(names)
    with torch.no_grad():
        factors[2][:, 1:] = -math.inf
        factors[3][0, 0] = -math.inf
    total = eliminate_chain(factors, variables(names))
    expected = LogRing().sumproduct([_detached(f) for f in factors], variables(names))
    torch.testing.assert_close(total, expected)
    assert all(g.isfinite().all() for g in torch.autograd.grad(total, factors))


def _detached(factor: Any) -> Tensor:
    copy: Any = factor.detach().clone()
    copy._pyro_dims = factor._pyro_dims
    result: Tensor = copy
    return result


@pytest.mark.parametrize(
    "names",
    [
        ["ab", "bc", "cd", "da"],  # a ring
        ["ab", "ac", "ad", "ae"],  # a star
        ["abc", "cd", "de"],  # three at once
        ["ab", "bc"],  # short
        ["ab", "cd", "ef", "gh"],  # in pieces
    ],
)
def test_factors_that_form_no_chain_are_left_to_pyro(names: list[str]) -> None:
    assert chain_order(names, variables(names)) is None
    assert eliminate_chain(terms(names), variables(names)) is None


def test_chain_of_variables_of_unequal_size_is_left_to_pyro() -> None:
    names = ["ab", "bc", "cd", "de"]
    factors = terms(names)
    factors[-1] = torch.zeros(4, 5)
    factors[-1]._pyro_dims = "de"
    assert eliminate_chain(factors, variables(names)) is None


def test_chain_order_does_not_depend_on_the_order_of_factors() -> None:
    assert chain_order(["cd", "ab", "de", "bc"], set("abcde")) == list("abcde")
    assert chain_order(["cx", "xa", "ab"], set("abcx")) == list("baxc")


def test_pyros_ring_eliminates_chains_within_the_context_only() -> None:
    names = CHAINS["no initial factor"]
    theirs = LogRing.sumproduct
    with fast_markov_elimination():
        assert LogRing.sumproduct is not theirs
        inside = LogRing().sumproduct(terms(names), variables(names))
        left = LogRing().sumproduct(terms(["ab", "ac", "ad", "ae"]), set("abcde"))
    assert LogRing.sumproduct is theirs
    torch.testing.assert_close(inside, theirs(LogRing(), terms(names), variables(names)))
    assert left.shape == ()
