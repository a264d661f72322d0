"""Leave-one-out elpd and PIT against exact values."""

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from diagnostic_cases import DiagnosticCases
from gaussian_pairs import mean_guide, mean_model
from pyro.distributions import MultivariateNormal, Normal
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
