"""Leave-one-out: the exact value from an approximate q, PIT that is uniform, data that are not."""

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import MultivariateNormal, Normal
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.leave_one_out import loo
from ppl_lvm.posterior.conditional_density import pointwise


def _mean_model(x: Tensor) -> None:
    mu = pyro.sample("mu", Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", Normal(mu, 1.0), obs=x)


def _mean_guide(x: Tensor) -> None:
    N = len(x)
    pyro.sample("mu", Normal(x.sum() / (N + 1) + 0.1, 1.3 * (N + 1) ** -0.5))


def _exact_loo(x: Tensor) -> float:
    N = len(x)
    mean = (x.sum() - x) / N
    return float(torch.distributions.Normal(mean, (1 + 1 / N) ** 0.5).log_prob(x).sum())


def test_leave_one_out_meets_the_exact_value_from_an_approximate_q() -> None:
    x = torch.randn(20)
    found = loo(_mean_model, _mean_guide, x, num_draws=4000)
    assert abs(found.loo.elpd - _exact_loo(x)) < 0.05
    assert found.findings()[0].verdict == "good"
    l = pointwise(_mean_model, _mean_guide, (x,), 4000).l
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
    found = loo(model, guide, x, num_draws=300)
    assert abs(found.loo.elpd - _exact_loo(x)) < 0.2


def test_influential_datum_makes_leave_one_out_unreliable() -> None:
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


def test_point_parameters_cannot_be_left_out(linear: Any, exact_guide: Any) -> None:
    with pytest.raises(CannotSayError, match="held-out"):
        loo(linear, exact_guide(linear), linear.simulate(5))


def test_pit_is_that_of_the_exact_predictive_distribution() -> None:
    x = torch.randn(20)
    found = loo(_mean_model, _mean_guide, x, num_draws=4000).pit["x"][:, 0]
    N = len(x)
    exact = torch.distributions.Normal((x.sum() - x) / N, (1 + 1 / N) ** 0.5).cdf(x).numpy()
    error = (exact * (1 - exact) / 2000) ** 0.5  # at least half of the draws count
    assert (np.abs(found - exact) < 5 * error + 1e-3).all()


@pytest.mark.parametrize(("spread", "verdict"), [(1.0, "good"), (3.0, "bad")])
def test_pit_sees_noise_of_another_size(spread: float, verdict: str) -> None:
    rows = loo(_mean_model, _mean_guide, spread * torch.randn(60)).findings()
    assert rows[1].name.startswith("LOO-PIT of x")
    assert rows[1].verdict == verdict


def test_values_that_are_missing_have_no_pit() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(mu, 1.0).mask(~x.isnan()), obs=x.nan_to_num())

    def guide(x: Tensor) -> None:
        N = (~x.isnan()).sum() + 1
        pyro.sample("mu", Normal(x.nansum() / N, N**-0.5))

    whole = torch.randn(60)
    x = torch.where(torch.arange(60) % 3 == 0, torch.nan, whole)
    found, seen = loo(model, guide, x), ~x.isnan().numpy()
    assert (np.isnan(found.pit["x"][:, 0]) == ~seen).all()
    mean = (whole[seen].sum() - whole[seen]) / seen.sum()
    exact = Normal(mean, (1 + 1 / seen.sum()) ** 0.5).cdf(whole[seen]).numpy()
    np.testing.assert_allclose(found.pit["x"][seen, 0], exact, atol=0.12)
    assert {f.verdict for f in found.findings()} == {"good"}
