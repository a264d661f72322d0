"""Evidence of convergence, parameter by parameter."""

import re

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_lvm.approximation import automatic
from ppl_lvm.approximation.automatic import find_posterior
from ppl_lvm.approximation.chain_statistics import (
    effective_size,
    r_hat,
    relative_sd_error,
    tail_effective_size,
    tail_k_hat,
)
from ppl_lvm.approximation.convergence import assess
from ppl_lvm.approximation.unconstrained import LogDensity

RANDOM = np.random.default_rng(0)
CHAINS = RANDOM.normal(size=(4, 200, 3)).cumsum(axis=1) * 0.05 + RANDOM.normal(size=(4, 200, 3))


def data(chains):
    return az.convert_to_dataset({"x": chains})


def test_chain_statistics_equal_arviz():
    known = data(CHAINS)
    np.testing.assert_allclose(r_hat(CHAINS), az.rhat(known)["x"].values, rtol=1e-10)
    for ours, method in ((effective_size, "bulk"), (tail_effective_size, "tail")):
        expected = az.ess(known, method=method)["x"].values
        np.testing.assert_allclose(ours(CHAINS), expected, rtol=0.05)
    expected = az.mcse(known, method="sd")["x"].values
    actual = relative_sd_error(CHAINS) * CHAINS.std(axis=(0, 1))
    np.testing.assert_allclose(actual, expected, rtol=0.1)


@pytest.mark.parametrize("degrees", [1, 2, 4])
def test_tail_k_hat_is_one_over_the_degrees_of_freedom(degrees):
    draws = np.random.default_rng(1).standard_t(degrees, size=(64, 60, 1))
    tail = np.ceil(3 * (64 * 60) ** 0.5)
    error = (1 + 1 / degrees) / tail**0.5
    assert tail_k_hat(draws)[0] == pytest.approx(1 / degrees, abs=5 * error)


def chains_of(draws):
    return torch.from_numpy(draws)


def evidence(draws):
    """Of a vector's draws (C, T, D)."""
    x = chains_of(draws)
    return assess({"x": x.flatten(0, 1)}, x)


def independent():
    return np.random.default_rng(2).normal(size=(64, 40, 3))


def test_independent_draws_are_good():
    assert evidence(independent()).enough


def test_entries_that_never_vary_are_no_parameters():
    x = chains_of(independent())
    triangle = torch.diag_embed(x.flatten(0, 1)[:, :2])
    result = assess({"L": triangle}, x)
    assert result.names == ["L[0, 0]", "L[1, 1]"]
    assert result.enough


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("drift", r"R̂ of x\[1\] is 1\.\d\d"),
        ("groups", r"x\[1\] has \d+ effective draws"),
        ("tail", r"x\[1\] has a heavy tail \(k̂ \d\.\d\d\)"),
        ("outlier", r"the sd of x\[1\] is known to \d+ % only"),
        ("stuck", "did not move"),
    ],
)
def test_reason_names_the_parameter(change, reason):
    draws = independent()
    if change == "drift":
        draws[:, :, 1] *= np.linspace(1, 2, 40)  # in spread alone
    elif change == "groups":
        draws[:, :, 1] += 2 * np.random.default_rng(3).normal(size=(64, 1))
    elif change == "tail":
        draws[:, :, 1] = np.random.default_rng(4).standard_t(1.5, size=(64, 40))
    elif change == "outlier":
        draws[0, 0, 1] = 30.0
    else:
        draws[0] = draws[0, 0]
    result = evidence(draws)
    assert any(re.search(reason, text) for text in result.reasons), result.reasons
    assert result.enough == (change == "tail")  # more draws of it do not help


def heavy(x, degrees):
    pyro.sample("z", dist.StudentT(degrees, 0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [2.0, 30.0])
def test_parameter_without_a_variance_is_not_called_good(degrees, monkeypatch):
    monkeypatch.setattr(automatic, "ROUNDS", 3)
    torch.set_default_dtype(torch.float64)
    try:
        density = LogDensity(lambda x: heavy(x, degrees), (torch.ones(5),))
        result = find_posterior(density, torch.Generator().manual_seed(0))
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.good == (degrees > 2), result.reasons
    assert result.good or " z " in f" {result.reasons[-1]} "


def test_statistics_of_many_values_are_those_of_each() -> None:
    chains = np.random.default_rng(0).normal(size=(4, 20, 1100))
    for statistic in (r_hat, effective_size, tail_k_hat):
        together = statistic(chains)
        assert together.shape == (1100,)
        for k in (0, 499, 500, 1099):
            np.testing.assert_allclose(together[k], statistic(chains[..., k : k + 1])[0])
