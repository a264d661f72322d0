"""Inference gaps of a diagonal q against closed forms."""

from typing import Any

import pyro
import pytest
import torch
from diagnostic_cases import DiagnosticCases
from gaussian_pairs import ExactGuide, LinearGaussian
from pyro.distributions import Categorical, MultivariateNormal, Normal
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.inference_gaps import generalization_gap, inference_gaps


def _gaps(shift: float) -> Any:
    model = LinearGaussian()
    guide, x = ExactGuide(model, 1.0, shift), model.simulate(200, seed=3)[:50]
    return inference_gaps(
        model, guide, x, log_evidence=model.exact(x), steps=50 if shift == 0 else 100
    )


def _correlated_posterior_gaps() -> Any:
    """Gaps of a diagonal q whose posterior is strongly correlated."""
    model = LinearGaussian()
    with torch.no_grad():
        model.W.copy_(2 * torch.ones(5, 2) + 0.05 * torch.randn(5, 2))
    x = model.simulate(50)
    mean, covariance = model.posterior(x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(mean, covariance.diagonal().sqrt()).to_event(1))

    return inference_gaps(model, guide, x, log_evidence=model.exact(x), steps=200)


def _generalization(factor: float) -> Any:
    model = LinearGaussian()
    train, held_out = model.simulate(200, seed=3), factor * model.simulate(200, seed=4)
    return generalization_gap(model, ExactGuide(model), (train,), (held_out,))


CASES = {
    "gaps": DiagnosticCases(
        good=[lambda: _gaps(0.0)], faulty=[lambda: _gaps(2.0), _correlated_posterior_gaps]
    ),
    "generalization": DiagnosticCases(
        good=[lambda: _generalization(1.0)], faulty=[lambda: _generalization(3.0)]
    ),
}


def diagonal(linear: Any, width: float = 1.0, shift: float = 0.0) -> Any:
    """The best diagonal Gaussian has sd 1/√precision; `width` and `shift` take it from there."""

    def guide(x: Tensor) -> None:
        mean, covariance = linear.posterior(x)
        sd = torch.linalg.inv(covariance).diagonal() ** -0.5
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(mean + shift * sd, width * sd).to_event(1))

    return guide


def best_diagonal_gap(linear: Any, x: Tensor) -> float:
    _, covariance = linear.posterior(x)
    precision = torch.linalg.inv(covariance)
    q = MultivariateNormal(torch.zeros(2), torch.diag(1 / precision.diagonal()))
    return float(
        torch.distributions.kl_divergence(q, MultivariateNormal(torch.zeros(2), covariance))
    )


@pytest.mark.slow
def test_gaps_meet_their_closed_forms(linear: Any) -> None:
    x = linear.simulate(60)
    width, shift = 0.4, 0.8
    result = inference_gaps(linear, diagonal(linear, width, shift), x, log_evidence=linear.exact(x))
    assert result.approximation is not None
    assert abs(result.approximation[0] - best_diagonal_gap(linear, x)) < 0.02
    _, covariance = linear.posterior(x)
    precision = torch.linalg.inv(covariance)
    sd = precision.diagonal() ** -0.5
    q, best = (torch.distributions.Normal(shift * sd * k, sd * w) for k, w in ((1, width), (0, 1)))
    p = MultivariateNormal(torch.zeros(2), covariance)

    def divergence(m: Any) -> float:
        q = MultivariateNormal(m.loc, torch.diag(m.scale**2))
        return float(torch.distributions.kl_divergence(q, p))

    exact = divergence(q) - divergence(best)
    assert abs(result.amortization[0] - exact) < 0.02 + 5 * result.monte_carlo_error


@pytest.mark.slow
def test_best_encoder_has_no_amortization_gap(linear: Any) -> None:
    x = linear.simulate(60)
    result = inference_gaps(linear, diagonal(linear), x, log_evidence=linear.exact(x))
    assert result.findings()[0].verdict == "good"
    assert abs(result.amortization[0]) < 0.02


@pytest.mark.slow
def test_bad_encoder_has_a_bad_amortization_gap(linear: Any) -> None:
    x = linear.simulate(60)
    result = inference_gaps(linear, diagonal(linear, 0.3, 2.0), x, log_evidence=linear.exact(x))
    assert result.findings()[0].verdict == "bad"


@pytest.mark.slow
def test_full_covariance_has_no_approximation_gap(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(30)
    result = inference_gaps(linear, exact_guide(linear, 0.5, 0.5), x, log_evidence=linear.exact(x))
    assert result.approximation is not None
    assert abs(result.approximation[0]) < 0.02


def test_inference_gaps_reject_guides_whose_sites_depend_on_each_other() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", Normal(0.0, 1.0))
            pyro.sample("b", Normal(a, 1.0))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", Normal(0.0, 1.0))
            b = pyro.sample("b", Normal(a, 1.0))
            pyro.sample("x", Normal(b, 1.0), obs=x)

    with pytest.raises(CannotSayError, match="depends on sites drawn before"):
        inference_gaps(model, guide, torch.zeros(5))


def test_inference_gaps_reject_enumerated_models() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(z.float(), 1.0), obs=x)

    with pytest.raises(CannotSayError):
        inference_gaps(model, lambda x: None, torch.zeros(3))


def test_generalization_gap_is_good_on_equal_and_bad_on_other_data(
    linear: Any, exact_guide: Any
) -> None:
    guide = exact_guide(linear)
    train = (linear.simulate(300, seed=1),)
    good = generalization_gap(linear, guide, train, (linear.simulate(300, seed=2),))
    assert good.findings()[0].verdict == "good"
    bad = generalization_gap(linear, guide, train, (2 * linear.simulate(300, seed=2),))
    assert bad.findings()[0].verdict == "bad"


@pytest.mark.slow
def test_generalization_gap_has_at_most_one_false_positive_in_twenty(
    linear: Any, exact_guide: Any
) -> None:
    guide = exact_guide(linear)
    alarms = 0
    for seed in range(40):
        train, held_out = (linear.simulate(100, seed=2 * seed + k) for k in (0, 1))
        row = generalization_gap(linear, guide, (train,), (held_out,), num_particles=2).findings()[
            0
        ]
        alarms += row.verdict != "good"
    assert alarms <= 2
