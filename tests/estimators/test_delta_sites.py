"""Bounds of Pyro's automatic guides with Delta sites and log-densities."""

import math
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Gamma, Normal
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

from ppl_lvm.estimators import ELBO, StickingTheLanding
from ppl_lvm.particles import analytic_kl as closed_form


def _model(x: Tensor) -> None:
    rate = pyro.sample("rate", Gamma(2.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", Normal(rate, 1.0), obs=x)


def _exact(x: Tensor, loc: float, scale: float) -> float:
    """The ELBO of q(rate) = LogNormal(loc, scale), by quadrature over its normal."""
    t = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    u = loc + scale * t
    log_joint = Gamma(2.0, 1.0).log_prob(u.exp()) + Normal(u.exp()[:, None], 1.0).log_prob(x).sum(
        -1
    )
    log_q = Normal(loc, scale).log_prob(u) - u
    weight = (-0.5 * t.square()).exp() / math.sqrt(2 * math.pi) * (t[1] - t[0])
    return float((weight * (log_joint - log_q)).sum())


@pytest.mark.parametrize("guide", [AutoNormal, AutoMultivariateNormal])
@pytest.mark.parametrize("estimator", [ELBO, StickingTheLanding])
def test_bound_includes_log_density_of_transformed_site(guide: Any, estimator: Any) -> None:
    x = torch.tensor([1.5, 2.5])
    q = guide(_model)
    q(x)
    with torch.no_grad():
        for leaf in q.parameters():
            leaf += 0.6  # at 0 the mean log-Jacobian is 0
    loss = estimator(num_particles=4000)
    with torch.no_grad():
        draws = torch.tensor([-loss.loss(_model, q, x) for _ in range(20)])
    loc, scale = q.quantiles([0.5, 0.8413447461])["rate"]
    if isinstance(loc, Tensor):
        loc, scale = loc.item(), scale.item()
    middle = math.log(loc)
    exact = _exact(x.double(), middle, math.log(scale) - middle)
    error = draws.std().item() / len(draws) ** 0.5
    assert draws.mean().item() == pytest.approx(exact, abs=5 * error)


def test_closed_form_without_log_density_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliberately wrong: Pyro's KL of a point mass."""
    monkeypatch.setattr(closed_form, "is_point", lambda fn: False)
    with pytest.raises(AssertionError):
        test_bound_includes_log_density_of_transformed_site(AutoNormal, ELBO)
