"""How q uses the latents: against closed forms, and a collapsed guide that must be found."""

import math
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Categorical, Normal
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.latent_usage import latent_use


def collapsed(x: Tensor) -> None:
    """q(z | x) = p(z)."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(x.new_zeros(2), 1.0).to_event(1))


def test_exact_guide_meets_closed_forms(linear: Any, exact_guide: Any) -> None:
    linear.noise = 1.5
    x = linear.simulate(1500)
    found = latent_use(linear, exact_guide(linear), x)
    mean, covariance = linear.posterior(x)
    torch.testing.assert_close(found.active, mean.double().var(0), rtol=0.02, atol=1e-3)
    W = linear.W.detach()
    information = 0.5 * torch.logdet(torch.eye(5) + W @ W.T / linear.noise**2).item()
    assert found.information is not None
    assert abs(found.information - information) < 0.05 + 5 * found.information_error
    assert abs(found.aggregate_kl or 0.0) < 0.1
    assert abs(found.elbo - float(linear.exact(x).mean())) < 1e-3  # q is exact: −(R + D) is log p
    each = (covariance.diagonal() + mean**2 - 1 - covariance.diagonal().log()) / 2
    torch.testing.assert_close(found.kl, each.mean(0).double(), rtol=1e-4, atol=1e-5)
    assert {f.verdict for f in found.findings()} == {"good"}
    assert not found.collapsed


def test_collapsed_guide_is_found(linear: Any) -> None:
    found = latent_use(linear, collapsed, linear.simulate(300))
    assert found.collapsed
    verdicts = [f.verdict for f in found.findings()]
    assert verdicts[:3] == ["bad", "bad", "bad"]
    assert "collapsed" in found.findings()[2].why
    assert found.information == pytest.approx(0.0, abs=1e-5)


def test_half_collapsed_guide_names_the_unused_unit(linear: Any) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            mean = torch.stack([x[:, 0], torch.zeros(len(x))], -1)
            pyro.sample("z", Normal(mean, torch.tensor([0.1, 1.0])).to_event(1))

    found = latent_use(linear, guide, linear.simulate(300))
    assert not found.collapsed
    assert "z[1]" in found.findings()[0].why
    assert found.kl[1] == pytest.approx(0.0)


def test_information_at_its_ceiling_is_said_to_be_a_lower_bound(linear: Any) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(x[:, :2], 1e-3).to_event(1))

    found = latent_use(linear, guide, linear.simulate(50))
    assert found.at_ceiling
    assert found.information == pytest.approx(math.log(50), abs=0.1)
    assert found.findings()[3].verdict == "unknown"


def test_codes_far_from_the_prior_are_found(linear: Any) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(5 + x[:, :2], 0.7).to_event(1))

    found = latent_use(linear, guide, linear.simulate(500))
    assert found.findings()[3].verdict == "bad"


def test_no_local_latent_cannot_say() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(z.float(), 1.0), obs=x)

    with pytest.raises(CannotSayError, match="nothing to encode"):
        latent_use(model, lambda x: None, torch.zeros(3))
