"""Pareto k̂ against theory, and corrected moments against exact ones.

A Gaussian q whose sd is f times too small has k = 1 − f².
"""

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from diagnostic_cases import DiagnosticCases
from gaussian_pairs import ExactGuide, LinearGaussian, mean_guide, mean_model
from pyro.distributions import Categorical, Normal
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.pareto_k import pareto_k


def _local(width: float) -> Any:
    model = LinearGaussian()
    return pareto_k(model, ExactGuide(model, width), model.simulate(200, seed=3))


def _global(scale: float) -> Any:
    x = LinearGaussian().simulate(200, seed=3)[:, 0]
    return pareto_k(mean_model, mean_guide(scale), x)


CASES = {
    "khat": DiagnosticCases(
        good=[lambda: _local(1.0), lambda: _global(1.0)],
        faulty=[lambda: _local(0.3), lambda: _local(0.6), lambda: _global(0.3)],
    )
}


def test_exact_guide_is_good_on_every_row(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(50)
    result = pareto_k(linear, exact_guide(linear), x, num_draws=1000)
    assert [f.verdict for f in result.findings()] == ["exact", "good", "good"]
    assert result.k.shape == (50,)
    assert (result.ess > 990).all()


def test_too_narrow_guide_is_bad_per_row(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(50)
    result = pareto_k(linear, exact_guide(linear, width=0.3), x, num_draws=4000)
    verdicts = {f.name: f.verdict for f in result.findings()}
    assert verdicts["share of rows with Pareto k̂ > 0.7"] == "bad"
    assert verdicts["posterior sd against q's sd, factor"] == "bad"


@pytest.mark.parametrize("width", [0.6, 0.8])
def test_k_follows_the_theory_of_one_dimension(exact_guide: Any, width: float) -> None:
    model = _one_dimensional()
    x = torch.randn(200, 1)
    result = pareto_k(model, _one_dimensional_guide(width), x, num_draws=4000)
    error = result.k.std(ddof=1) / np.sqrt(200)
    assert abs(result.k.mean() - (1 - width**2)) < 0.05 + 5 * error


def test_corrected_moments_meet_the_exact_posterior(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(20)
    result = pareto_k(linear, exact_guide(linear, width=1.3, shift=0.3), x, num_draws=8000)
    mean, covariance = linear.posterior(x)
    sd = covariance.diagonal().sqrt().numpy()
    moments = result.moments["z"]
    error = sd / np.sqrt(result.ess[:, None])
    assert (np.abs(moments.mean - mean.numpy()) < 5 * error).all()
    assert (np.abs(moments.sd - sd) < 5 * error).all()
    assert (np.abs(moments.q_mean - mean.numpy()) > 5 * error).all()  # uncorrected it is off


def test_global_latents_have_one_joint_k() -> None:
    x = torch.randn(30) + 1.0
    good = pareto_k(mean_model, mean_guide(), x, num_draws=2000)
    assert good.joint
    assert good.k.shape == (1,)
    assert good.findings()[0].verdict == "exact"  # q is the posterior
    bad = pareto_k(mean_model, mean_guide(0.2), x, num_draws=2000)
    assert bad.findings()[0].verdict == "bad"


def test_pareto_k_rejects_guides_without_latents() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(z.float(), 1.0), obs=x)

    with pytest.raises(CannotSayError, match="draws nothing"):
        pareto_k(model, lambda x: None, torch.zeros(3))


def _one_dimensional() -> Any:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    return model


def _one_dimensional_guide(width: float) -> Any:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(x[:, 0] / 2, width * 0.5**0.5))

    return guide


def test_pareto_k_uses_the_draws_of_all_chunks(
    linear: Any, exact_guide: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = linear.simulate(10)
    monkeypatch.setattr("ppl_lvm.diagnostics.pareto_k.CHUNK", 330)
    result = pareto_k(linear, exact_guide(linear), x, num_draws=100)  # 33 at once
    assert result.moments["z"].mean.shape == (10, 2)
    np.testing.assert_allclose(result.ess, 100, rtol=1e-3)
