"""Auxiliary sites of guides: rejected, or with the right evidence."""

import math
from typing import Any

import pyro
import pytest
import torch
from estimator_rejections import X, rejections
from pyro.distributions import (
    Bernoulli,
    Delta,
    Dirichlet,
    LogNormal,
    Normal,
)
from pyro.infer import autoguide
from torch import Tensor

import ppl_lvm.estimators as estimators
from ppl_lvm.checks import check
from ppl_lvm.particles import log_weights

pytestmark = pytest.mark.filterwarnings("ignore:Particles run one by one")
AUXILIARY = {"is_auxiliary": True}


def _positive(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", LogNormal(0.0, 1.0))
        pyro.sample("x", Normal(z, 0.7), obs=x)


def _mixture(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", Bernoulli(torch.full((len(x),), 0.5)), infer=AUXILIARY)
        pyro.sample("z", LogNormal(a, 1.0))


def _masked_mixture(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", Bernoulli(torch.full((len(x),), 0.5)).mask(False), infer=AUXILIARY)
        pyro.sample("z", LogNormal(a, 1.0))


def _constant_of_auxiliary(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("a", Normal(torch.zeros(len(x)), 1.0), infer=AUXILIARY)
        pyro.sample("z", Delta(torch.ones(len(x))))


def _point(x: Tensor, sign: float = -1.0, columns: int = 1) -> None:
    with pyro.plate("data", len(x), dim=-1):
        normal = Normal(torch.zeros(len(x), columns), 1.0).to_event(1)
        a = pyro.sample("a", normal, infer=AUXILIARY).sum(-1)
        pyro.sample("z", Delta(a.exp(), log_density=sign * a))


@pytest.mark.parametrize(
    ("guide", "site", "words"),
    [
        (_mixture, "a", "does not sample it"),
        (_constant_of_auxiliary, "a", "does not sample it"),
        (lambda x: _point(x, sign=0.0), "z", "log_density"),
        (lambda x: _point(x, sign=1.0), "z", "log_density"),
        (lambda x: _point(x, columns=2), "a", "8 values"),
    ],
)
def test_auxiliary_site_without_counterpart_is_rejected_everywhere(
    guide: Any, site: str, words: str
) -> None:
    reasons = rejections(_positive, guide)
    assert set(reasons) == set(estimators.__all__)
    assert all(words in reason and f"'{site}'" in reason for reason in reasons.values())
    with pytest.raises(ValueError, match=words):
        log_weights(_positive, guide, X)
    issues = check(_positive, guide, X).errors
    assert [(issue.code, issue.site) for issue in issues] == [("auxiliary-site", site)]


@pytest.mark.parametrize("guide", [_masked_mixture, _point])
def test_auxiliary_site_that_cancels_or_determines_the_latent_gives_the_evidence(
    guide: Any,
) -> None:
    torch.manual_seed(0)
    log_w = log_weights(_positive, guide, X, num_particles=40_000)
    w = log_w.double().exp().mean(1)
    t = torch.linspace(-9.0, 9.0, 20_001, dtype=torch.float64)
    density = Normal(0.0, 1.0).log_prob(t) + Normal(t.exp(), 0.7).log_prob(torch.tensor(0.8))
    exact = float(density.exp().sum() * (t[1] - t[0]))
    assert w.mean().item() == pytest.approx(exact, abs=5 * w.std().item() / len(w) ** 0.5)
    assert not check(_positive, guide, X).errors


def test_auxiliary_site_with_a_reverse_density_in_the_model_is_accepted() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", LogNormal(0.0, 1.0))
            pyro.sample("a", Bernoulli(logits=z))
            pyro.sample("x", Normal(z, 0.7), obs=x)

    assert "LeaveOneOut" not in rejections(model, _mixture)


@pytest.mark.parametrize("name", ["AutoNormal", "AutoMultivariateNormal", "AutoStructured"])
def test_automatic_guides_with_auxiliary_sites_are_accepted(name: str) -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", LogNormal(torch.zeros(2), 1.0).to_event(1))
        share = pyro.sample("share", Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z + w.sum() + share[0], 1.0), obs=x)

    guide = getattr(autoguide, name)(model)
    guide(X)
    assert math.isfinite(estimators.ELBO().loss(model, guide, X))


def _location_scale(x: Tensor) -> None:
    loc, scale = pyro.param("loc", torch.zeros(())), pyro.param("scale", torch.ones(()))
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", Normal(torch.zeros(len(x)), 1.0), infer=AUXILIARY)
        pyro.sample("z", Delta((loc + scale * a).exp(), log_density=-scale.log() - loc - scale * a))


def test_wake_phase_refuses_a_point_whose_density_has_parameters() -> None:
    """At a fixed point the density of f(a; φ) has another derivative than at a fixed a."""
    structured = autoguide.AutoStructured(_positive, conditionals="normal")
    for guide in (_location_scale, structured):
        with pytest.raises(ValueError, match="point 'z' depends on parameters at a fixed draw"):
            estimators.ReweightedWakeSleep().loss(_positive, guide, X)
    estimators.ThermodynamicELBO().loss(_positive, _location_scale, X)
    for accepted in (autoguide.AutoNormal, autoguide.AutoDelta):
        estimators.ReweightedWakeSleep().loss(_positive, accepted(_positive), X)


def test_wake_phase_accepts_a_point_that_reads_a_latent_of_the_model() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            s = pyro.sample("s", Normal(z, 1.0))
            pyro.sample("x", Normal(s, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.ones(()))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("s", Delta(slope * z))

    estimators.ReweightedWakeSleep().loss(model, guide, X)


def test_discrete_auxiliary_site_of_a_continuous_point_is_rejected() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", Bernoulli(torch.full((len(x),), 0.5)), infer=AUXILIARY)
            pyro.sample("z", Delta(1.0 + a))

    reasons = rejections(_positive, guide)
    assert set(reasons) == set(estimators.__all__)
    assert all("'a' is discrete and its point 'z'" in reason for reason in reasons.values())
