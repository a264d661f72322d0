"""A chain summed out from both ends is the sum that Pyro's own contraction finds."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pyro.ops.rings import LogRing
from torch import Tensor

from ppl_lvm.compiler.capture import markov_chains as chains
from ppl_lvm.compiler.capture.markov_chains import (
    chain_order,
    eliminate_chain,
    fast_markov_elimination,
)

# Letters: a, b, ... are the chain's variables, p and q are plates.
CHAINS = {
    "initial, transitions, emissions": ["ap", "abp", "bcp", "cdp", "dep", "ap", "bp", "cp", "ep"],
    "terms without the plates": ["a", "ab", "cbp", "cd", "edq", "cp", "eq"],
    "two factors between neighbours": ["ab", "ba", "bc", "cd", "d", "d"],
    "nothing at the start": ["ab", "bc", "cd", "de", "ef", "fg", "gh"],
}
SIZES = {"p": 3, "q": 2}


def terms(names: Sequence[str], seed: int = 0) -> list[Any]:
    torch.manual_seed(seed)
    found: list[Any] = []
    for name in names:
        shape = [SIZES.get(letter, 4) for letter in name]
        found.append(torch.randn(shape, dtype=torch.float64, requires_grad=True))
        found[-1]._pyro_dims = name
    return found


def variables(names: Sequence[str]) -> set[str]:
    return set("".join(names)) - {"p", "q"}


@pytest.mark.parametrize("case", CHAINS)
def test_the_sum_and_its_gradient_are_pyros(case: str) -> None:
    names = CHAINS[case]
    ours, theirs = terms(names), terms(names)
    got = eliminate_chain(ours, variables(names))
    wanted = LogRing().sumproduct(theirs, variables(names))
    assert got._pyro_dims == wanted._pyro_dims
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    weight = torch.rand_like(got)
    found = torch.autograd.grad((weight * got).sum(), ours)
    for a, b in zip(found, torch.autograd.grad((weight * wanted).sum(), theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CHAINS)
def test_so_are_those_of_a_chain_too_long_that_is_halved_first(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "_LONGEST", 2)
    test_the_sum_and_its_gradient_are_pyros(case)


def test_impossible_states_leave_finite_gradients() -> None:
    names = ["a", "ab", "bc", "cd", "de"]
    factors = terms(names)
    with torch.no_grad():
        factors[2][:, 1:] = -math.inf
        factors[3][0, 0] = -math.inf
    got = eliminate_chain(factors, variables(names))
    wanted = LogRing().sumproduct([_named(f) for f in factors], variables(names))
    torch.testing.assert_close(got, wanted)
    assert all(g.isfinite().all() for g in torch.autograd.grad(got, factors))


def _named(factor: Any) -> Tensor:
    copy: Any = factor.detach().clone()
    copy._pyro_dims = factor._pyro_dims
    found: Tensor = copy
    return found


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
def test_what_is_no_chain_is_left_to_pyro(names: list[str]) -> None:
    assert chain_order(names, variables(names)) is None
    assert eliminate_chain(terms(names), variables(names)) is None


def test_a_chain_of_unequal_variables_is_left_to_pyro() -> None:
    names = ["ab", "bc", "cd", "de"]
    factors = terms(names)
    factors[-1] = torch.zeros(4, 5)
    factors[-1]._pyro_dims = "de"
    assert eliminate_chain(factors, variables(names)) is None


def test_the_order_is_the_chains_whatever_the_order_of_factors() -> None:
    assert chain_order(["cd", "ab", "de", "bc"], set("abcde")) == list("abcde")
    assert chain_order(["cx", "xa", "ab"], set("abcx")) == list("baxc")


def test_pyros_ring_takes_it_within_the_context_only() -> None:
    names = CHAINS["nothing at the start"]
    theirs = LogRing.sumproduct
    with fast_markov_elimination():
        assert LogRing.sumproduct is not theirs
        inside = LogRing().sumproduct(terms(names), variables(names))
        left = LogRing().sumproduct(terms(["ab", "ac", "ad", "ae"]), set("abcde"))
    assert LogRing.sumproduct is theirs
    torch.testing.assert_close(inside, theirs(LogRing(), terms(names), variables(names)))
    assert left.shape == ()
