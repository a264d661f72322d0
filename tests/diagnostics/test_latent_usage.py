"""Latent usage against closed forms, and of collapsed guides."""

import math
from typing import Any

import pyro
import pytest
import torch
from diagnostic_cases import DiagnosticCases
from gaussian_pairs import ExactGuide, LinearGaussian, prior_guide
from pyro.distributions import Categorical, Normal
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.latent_usage import latent_use


def _use(factor: float = 1.0, collapsed: bool = False) -> Any:
    model = LinearGaussian()
    guide = prior_guide if collapsed else ExactGuide(model)
    return latent_use(model, guide, factor * model.simulate(200, seed=3))


CASES = {
    "latents": DiagnosticCases(
        good=[_use], faulty=[lambda: _use(collapsed=True), lambda: _use(factor=4.0)]
    )
}


def test_exact_guide_meets_closed_forms(linear: Any, exact_guide: Any) -> None:
    linear.noise = 1.5
    x = linear.simulate(1500)
    result = latent_use(linear, exact_guide(linear), x)
    mean, covariance = linear.posterior(x)
    torch.testing.assert_close(result.active, mean.double().var(0), rtol=0.02, atol=1e-3)
    W = linear.W.detach()
    information = 0.5 * torch.logdet(torch.eye(5) + W @ W.T / linear.noise**2).item()
    assert result.information is not None
    assert abs(result.information - information) < 0.05 + 5 * result.information_error
    assert abs(result.rate - result.information) < 0.1  # KL(q(z) ‖ p(z))
    assert abs(result.elbo - float(linear.exact(x).mean())) < 1e-3  # q is exact: −(R + D) is log p
    kl = (covariance.diagonal() + mean**2 - 1 - covariance.diagonal().log()) / 2
    torch.testing.assert_close(result.kl, kl.mean(0).double(), rtol=1e-4, atol=1e-5)
    assert {f.verdict for f in result.findings()} == {"good"}
    assert not result.collapsed


def test_collapsed_guide_is_bad(linear: Any) -> None:
    result = latent_use(linear, prior_guide, linear.simulate(300))
    assert result.collapsed
    verdicts = [f.verdict for f in result.findings()]
    assert verdicts[:3] == ["bad", "bad", "bad"]
    assert "collapsed" in result.findings()[2].why
    assert result.information == pytest.approx(0.0, abs=1e-5)


def test_half_collapsed_guide_names_the_unused_unit(linear: Any) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            mean = torch.stack([x[:, 0], torch.zeros(len(x))], -1)
            pyro.sample("z", Normal(mean, torch.tensor([0.1, 1.0])).to_event(1))

    result = latent_use(linear, guide, linear.simulate(300))
    assert not result.collapsed
    assert "z[1]" in result.findings()[0].why
    assert result.kl[1] == pytest.approx(0.0)


def test_information_at_its_ceiling_leaves_the_aggregate_kl_unknown(linear: Any) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(x[:, :2], 1e-3).to_event(1))

    result = latent_use(linear, guide, linear.simulate(50))
    assert result.at_ceiling
    assert result.information == pytest.approx(math.log(50), abs=0.1)
    assert result.findings()[3].verdict == "unknown"


def test_latents_far_from_the_prior_have_a_bad_aggregate_kl(linear: Any) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(5 + x[:, :2], 0.7).to_event(1))

    result = latent_use(linear, guide, linear.simulate(500))
    assert result.findings()[3].verdict == "bad"


def test_latent_use_rejects_guides_without_local_latents() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(z.float(), 1.0), obs=x)

    with pytest.raises(CannotSayError, match="nothing to encode"):
        latent_use(model, lambda x: None, torch.zeros(3))
