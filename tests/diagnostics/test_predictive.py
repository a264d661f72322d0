"""Predictive checks: good on data of the model's own, bad on another likelihood."""

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import MultivariateNormal, Normal
from torch import Tensor

from ppl_lvm.diagnostics.finding import CannotSayError
from ppl_lvm.diagnostics.leave_out import pointwise
from ppl_lvm.diagnostics.predictive import check, classify, loo, two_sample


def heavy(linear: Any, rows: int) -> Tensor:
    """Data whose noise has the model's variance and another shape."""
    x = linear.simulate(rows)
    noise = torch.distributions.StudentT(2.2).sample(x.shape) * 1.2
    return x + noise.clamp(-40, 40)


def test_data_of_the_model_pass(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(300)
    found = check(linear, exact_guide(linear), x)
    assert {f.verdict for f in found.findings()} == {"good"}
    assert set(found.replicated) >= {"x: mean", "x: largest", "x: largest eigenvalue"}
    assert two_sample(linear, exact_guide(linear), x).findings()[0].verdict == "good"


def test_misspecified_noise_is_found(linear: Any, exact_guide: Any) -> None:
    x = heavy(linear, 300)
    found = check(linear, exact_guide(linear), x)
    assert [f.verdict for f in found.findings()] == ["bad", "bad"]
    assert two_sample(linear, exact_guide(linear), x).findings()[0].verdict == "bad"


def test_users_own_quantity_is_asked(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(100)
    x[:, 0] = x[:, 0].sort().values  # rows are no longer exchangeable
    found = check(
        linear,
        exact_guide(linear),
        x,
        own={"first half's mean": lambda d: d[:, :50, 0].mean(1)},
    )
    assert found.p_values["x: first half's mean"] > 0.99
    assert "first half's mean" in found.findings()[0].why


def test_alarms_are_at_most_one_in_twenty(linear: Any, exact_guide: Any) -> None:
    alarms = np.zeros(3)
    for seed in range(60):
        x = linear.simulate(100, seed=seed)
        rows = check(linear, exact_guide(linear), x, seed=seed, num_replicates=499).findings()
        rows += two_sample(linear, exact_guide(linear), x, seed=seed).findings()
        alarms += [f.verdict != "good" for f in rows]
    assert (alarms <= 3).all()


def test_classifiers_see_a_rotation_that_no_marginal_shows() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 2))
    y = generator.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 300)
    found = classify(x, y, generator)
    assert found.p_value < 0.01
    assert max(found.accuracy.values()) > 0.6
    same = classify(x, generator.normal(size=(300, 2)), generator)
    assert same.p_value > 0.02


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
    l, _, _ = pointwise(_mean_model, _mean_guide, (x,), 4000)
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
    assert loo(model, guide, x).findings()[0].verdict == "bad"


def test_point_parameters_cannot_be_left_out(linear: Any, exact_guide: Any) -> None:
    with pytest.raises(CannotSayError, match="held-out"):
        loo(linear, exact_guide(linear), linear.simulate(5))
