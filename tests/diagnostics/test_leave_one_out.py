"""Leave-one-out elpd and PIT against exact values."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from diagnostic_cases import DiagnosticCases
from gaussian_pairs import mean_guide, mean_model
from pyro.distributions import Bernoulli, Categorical, MultivariateNormal, Normal
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.leave_one_out import loo
from ppl_lvm.posterior.conditional_density import pointwise_densities


def _loo(factor: float = 1.0, **guide_error: float) -> Any:
    x = torch.from_numpy(np.random.default_rng(4).normal(0.3, 1, 50)).float()
    return loo(mean_model, mean_guide(**guide_error), factor * x)


CASES = {
    "loo": DiagnosticCases(
        good=[_loo], faulty=[lambda: _loo(3.0), lambda: _loo(scale=0.3, shift=3.0)]
    )
}


def _approximate_guide(x: Tensor) -> None:
    N = len(x)
    pyro.sample("mu", Normal(x.sum() / (N + 1) + 0.1, 1.3 * (N + 1) ** -0.5))


def _exact_loo(x: Tensor) -> float:
    N = len(x)
    mean = (x.sum() - x) / N
    return float(torch.distributions.Normal(mean, (1 + 1 / N) ** 0.5).log_prob(x).sum())


def test_leave_one_out_meets_the_exact_value_from_an_approximate_q() -> None:
    x = torch.randn(20)
    result = loo(mean_model, _approximate_guide, x, num_draws=4000)
    assert abs(result.loo.elpd - _exact_loo(x)) < 0.05
    assert result.findings()[0].verdict == "good"
    l = pointwise_densities(mean_model, _approximate_guide, (x,), 4000).log_lik
    plain = float((-((-l).logsumexp(0) - np.log(4000))).sum())
    assert abs(plain - _exact_loo(x)) > 0.1  # without the correction for q it is off


def test_leave_one_out_sums_out_local_latents() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(mu, 0.6))
            pyro.sample("x", Normal(z, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        mu = pyro.sample("mu", Normal(x.sum() / (len(x) + 1), (len(x) + 1) ** -0.5))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(0.64 * mu + 0.36 * x, 0.5))

    x = torch.randn(12)
    result = loo(model, guide, x, num_draws=300)
    assert abs(result.loo.elpd - _exact_loo(x)) < 0.2


def test_influential_row_makes_leave_one_out_unreliable() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", Normal(torch.zeros(4), 10.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(mu, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        N = len(x)
        pyro.sample("mu", MultivariateNormal(x.sum(0) / (N + 0.01), torch.eye(4) / (N + 0.01)))

    x = torch.randn(3, 4) * 3
    rows = loo(model, guide, x).findings()
    assert [f.verdict for f in rows] == ["bad", "unknown"]


def test_rows_that_fail_by_the_guide_say_nothing_of_the_data() -> None:
    result = _loo(scale=0.3, shift=3.0)
    assert result.findings()[0].verdict == "bad"
    by_guide = dataclasses.replace(result, joint_k=0.9).findings()
    assert {f.verdict for f in by_guide} == {"unknown"}
    assert "joint k̂ of 0.90" in by_guide[0].why
    sound = dataclasses.replace(_loo(), joint_k=0.9).findings()
    assert sound[0].verdict == "good"


def test_leave_one_out_rejects_models_without_global_latents(linear: Any, exact_guide: Any) -> None:
    with pytest.raises(CannotSayError, match="held-out"):
        loo(linear, exact_guide(linear), linear.simulate(5))


def test_pit_is_that_of_the_exact_predictive_distribution() -> None:
    x = torch.randn(20)
    pit = loo(mean_model, _approximate_guide, x, num_draws=4000).pit["x"][:, 0]
    N = len(x)
    exact = torch.distributions.Normal((x.sum() - x) / N, (1 + 1 / N) ** 0.5).cdf(x).numpy()
    error = (exact * (1 - exact) / 2000) ** 0.5  # at least half of the draws count
    assert (np.abs(pit - exact) < 5 * error + 1e-3).all()


@pytest.mark.parametrize(("spread", "verdict"), [(1.0, "good"), (3.0, "bad")])
def test_pit_detects_a_wrong_noise_scale(spread: float, verdict: str) -> None:
    rows = loo(mean_model, _approximate_guide, spread * torch.randn(60)).findings()
    assert rows[1].name.startswith("LOO-PIT of x")
    assert rows[1].verdict == verdict


def test_missing_values_have_no_pit() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(mu, 1.0).mask(~x.isnan()), obs=x.nan_to_num())

    def guide(x: Tensor) -> None:
        N = (~x.isnan()).sum() + 1
        pyro.sample("mu", Normal(x.nansum() / N, N**-0.5))

    complete = torch.randn(60)
    x = torch.where(torch.arange(60) % 3 == 0, torch.nan, complete)
    result, observed = loo(model, guide, x), ~x.isnan().numpy()
    assert (np.isnan(result.pit["x"][:, 0]) == ~observed).all()
    mean = (complete[observed].sum() - complete[observed]) / observed.sum()
    exact = Normal(mean, (1 + 1 / observed.sum()) ** 0.5).cdf(complete[observed]).numpy()
    np.testing.assert_allclose(result.pit["x"][observed, 0], exact, atol=0.12)
    assert {f.verdict for f in result.findings()} == {"good"}


SUMMED = {"enumerate": "parallel"}
JUMP = torch.from_numpy(np.random.default_rng(5).normal(np.repeat([0, 5], 15), 1)).float()


def _no_guide(x: Tensor) -> None:
    pass


def _change_point(x: Tensor) -> None:
    """The mean jumps from 0 to 5 at tau."""
    N = len(x)
    tau = pyro.sample("tau", Categorical(torch.ones(N) / N), infer=SUMMED)
    with pyro.plate("data", N, dim=-1):
        pyro.sample("x", Normal(5.0 * (torch.arange(N) >= tau), 1.0), obs=x)


def _exact_rows(prior: Tensor, terms: Tensor) -> Tensor:
    """log p(x_n | x_-n) from log p(c) (C,) and log p(x_n | c) (C, N), in double precision."""
    total = prior[:, None] + terms.sum(1, keepdim=True)
    return total.logsumexp(0) - (total - terms).logsumexp(0)


def test_leave_one_out_sums_out_a_change_point_given_the_other_rows() -> None:
    """Next to the jump the posterior of tau without the row differs from that with it."""
    x, N = JUMP, len(JUMP)
    terms = torch.stack(
        [Normal(5.0 * (torch.arange(N) >= t), 1.0).log_prob(x) for t in range(N)]
    ).double()
    exact = _exact_rows(torch.zeros(N, dtype=torch.float64), terms)
    result = loo(_change_point, _no_guide, x)
    np.testing.assert_allclose(result.loo.elpd_i, exact, rtol=0, atol=1e-4)
    assert {f.verdict for f in result.findings()} == {"good"}
    # Given a draw of tau, which never leaves its one likely place, the two rows are .69 better.
    drawn = torch.logsumexp(terms.sum(1).log_softmax(0)[:, None] + terms, 0)
    assert float((drawn - exact).max()) > 0.5


def test_leave_one_out_of_a_change_point_with_global_latents_is_exact() -> None:
    def model(x: Tensor) -> None:
        N = len(x)
        with pyro.plate("sides", 2, dim=-1):
            mu = pyro.sample("mu", Normal(0.0, 10.0))
        tau = pyro.sample("tau", Categorical(torch.ones(N) / N), infer=SUMMED)
        with pyro.plate("data", N, dim=-1):
            mean = torch.where(torch.arange(N) < tau, mu[..., :1], mu[..., 1:])
            pyro.sample("x", Normal(mean, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("sides", 2, dim=-1):
            pyro.sample("mu", Normal(torch.tensor([0.0, 5.0]), 0.3))

    def side(y: Tensor) -> Tensor:
        covariance = torch.eye(len(y), dtype=torch.float64) + 100.0
        if len(y) == 0:
            return torch.zeros((), dtype=torch.float64)
        zeros = torch.zeros(len(y), dtype=torch.float64)
        return MultivariateNormal(zeros, covariance).log_prob(y.double())

    def evidence(y: Tensor, at: Tensor) -> Tensor:
        places = range(len(JUMP))
        return torch.stack([side(y[at < t]) + side(y[at >= t]) for t in places]).logsumexp(0)

    at = torch.arange(len(JUMP))
    whole = evidence(JUMP, at)
    rows = [whole - evidence(JUMP[at != n], at[at != n]) for n in at]
    result = loo(model, guide, JUMP, num_draws=2000)
    np.testing.assert_allclose(result.loo.elpd_i, torch.stack(rows), rtol=0, atol=0.05)


def test_leave_one_out_sums_out_two_global_flags_and_local_classes() -> None:
    def model(x: Tensor) -> None:
        a = pyro.sample("a", Bernoulli(0.3), infer=SUMMED)
        b = pyro.sample("b", Bernoulli(0.5), infer=SUMMED)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(0.3), infer=SUMMED)
            pyro.sample("x", Normal(a + 2 * b + z, 1.0), obs=x)

    x = torch.randn(8) + 1
    prior = torch.tensor([0.35, 0.15, 0.35, 0.15]).double().log()
    classes = torch.tensor([0.7, 0.3]).log()[:, None]
    means = torch.tensor([[[0.0], [1.0]], [[1.0], [2.0]], [[2.0], [3.0]], [[3.0], [4.0]]])
    terms = (classes + Normal(means, 1.0).log_prob(x)).logsumexp(1).double()
    elpd_i = loo(model, _no_guide, x).loo.elpd_i
    np.testing.assert_allclose(elpd_i, _exact_rows(prior, terms), rtol=0, atol=1e-4)


def test_leave_one_out_sums_out_flags_in_a_plate_around_the_rows() -> None:
    def model(x: Tensor) -> None:
        c = pyro.sample("c", Bernoulli(0.5), infer=SUMMED)
        with pyro.plate("flags", 2, dim=-2):
            a = pyro.sample("a", Bernoulli(torch.tensor([[0.5], [0.3]])), infer=SUMMED)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("x", Normal(a + c, 1.0), obs=x.T)

    x = torch.randn(8, 2) + 1
    prior, terms = [], []
    for a, b, c in itertools.product((0.0, 1.0), repeat=3):
        prior.append(math.log(0.25) + math.log(0.3 if b else 0.7))
        terms.append(Normal(torch.tensor([a, b]) + c, 1.0).log_prob(x).sum(-1))
    exact = _exact_rows(torch.tensor(prior, dtype=torch.float64), torch.stack(terms).double())
    elpd_i = loo(model, _no_guide, x).loo.elpd_i
    np.testing.assert_allclose(elpd_i, exact, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_leave_one_out_of_local_draws_sums_out_a_global_class() -> None:
    prior = torch.tensor([0.2, 0.3, 0.5])

    def model(x: Tensor) -> None:
        a = pyro.sample("a", Categorical(prior), infer=SUMMED)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(a.float(), 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal((x + 1) / 2, 0.9))

    x = torch.randn(8) + 1
    terms = torch.stack([Normal(float(a), 2**0.5).log_prob(x) for a in range(3)]).double()
    elpd_i = loo(model, guide, x, num_draws=50).loo.elpd_i
    np.testing.assert_allclose(elpd_i, _exact_rows(prior.double().log(), terms), rtol=0, atol=0.1)


def test_leave_one_out_rejects_rows_that_cannot_be_separated() -> None:
    def chain(x: Tensor) -> None:
        state = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            switch = torch.tensor([[0.9, 0.1], [0.1, 0.9]])[state]
            state = pyro.sample(f"s{t}", Categorical(switch), infer=SUMMED)
            pyro.sample(f"x{t}", Normal(3.0 * state, 1.0), obs=x[t])

    def event(x: Tensor) -> None:
        mu = pyro.sample("mu", Normal(0.0, 1.0))
        pyro.sample("x", Normal(mu.unsqueeze(-1).expand(*mu.shape, 20), 1.0).to_event(1), obs=x)

    x = torch.randn(20)
    with pytest.raises(CannotSayError, match="joint states: more than"):
        loo(chain, _no_guide, x)
    with pytest.raises(CannotSayError, match="no observed site is inside a plate over rows"):
        loo(event, mean_guide(), x)


def test_leave_one_out_pit_with_a_shared_flag_is_exact() -> None:
    """u_n = Σ_c p(c | x_-n) Φ(x_n − 1.5 c), and not with p(c | x)."""

    def flagged(x: Tensor) -> None:
        flag = pyro.sample("flag", Bernoulli(0.5), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(1.5 * flag, 1.0), obs=x)

    x = torch.tensor([0.2, 2.4, 0.9, -0.6])
    log_p = torch.stack([Normal(1.5 * c, 1.0).log_prob(x) for c in (0.0, 1.0)])  # (C, N)
    others = log_p.sum(1, keepdim=True) - log_p
    below = torch.stack([Normal(1.5 * c, 1.0).cdf(x) for c in (0.0, 1.0)])
    exact, wrong = ((t.softmax(0) * below).sum(0) for t in (others, log_p.sum(1, keepdim=True)))
    u = torch.from_numpy(loo(flagged, lambda x: None, x, num_draws=20_000).pit["x"][:, 0])
    torch.testing.assert_close(u.float(), exact, rtol=0, atol=0.025)
    assert float((wrong - exact).abs().max()) > 0.05


def test_leave_one_out_rejects_local_latents_that_the_guide_draws_with_the_global_ones() -> None:
    def grouped(x: Tensor) -> None:
        mean = pyro.sample("mean", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(mean, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    x = torch.randn(5, generator=torch.Generator().manual_seed(0))
    for make in (AutoMultivariateNormal, AutoNormal):
        guide = make(grouped)
        guide(x)
        if make is AutoNormal:
            assert np.isfinite(loo(grouped, guide, x, num_draws=50).loo.elpd)
            continue
        with pytest.raises(CannotSayError, match="draws 'z' of all rows together"):
            loo(grouped, guide, x, num_draws=50)
