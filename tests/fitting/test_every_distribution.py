"""Distributions as observed and as latent sites: fitted or named."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.checks import check
from ppl_lvm.core.distributions import distribution_fault
from ppl_lvm.fitting.svi import fit
from ppl_lvm.posterior.simulation import simulate

N = 6
Build = Callable[[Tensor], Any]


class Program(PyroModule):
    """One distribution of a parameter θ, observed or latent."""

    def __init__(self, build: Build, role: str) -> None:
        super().__init__()
        self.build, self.role = build, role
        self.theta = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> None:
        if self.role == "global":
            fn = self.build(self.theta)
            w = pyro.sample("z", fn).to(torch.get_default_dtype())
            w = w.sum(-1) if fn.event_dim else w
        with pyro.plate("data", len(x), dim=-1):
            if self.role == "observed":
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", self.build(self.theta + 0.1 * z), obs=x)
                return
            if self.role == "without latents":
                pyro.sample("x", self.build(self.theta), obs=x)
                return
            if self.role == "local":
                fn = self.build(self.theta.expand(len(x)))
                w = pyro.sample("z", fn).to(torch.get_default_dtype())
                w = w.reshape(*w.shape[: w.dim() - fn.event_dim], -1).sum(-1) if fn.event_dim else w
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def _fit(build: Build, role: str, x: Tensor | None = None) -> Any:
    x = torch.linspace(-1.0, 1.0, N) if x is None else x
    return fit(Program(build, role), None, x, num_steps=3, engine="eager", progress=False)


def _columns(t: Tensor, size: int) -> Tensor:
    return t.unsqueeze(-1).expand(*t.shape, size)


def _bivariate(t: Tensor) -> Any:
    one = torch.ones_like(t)
    return dist.SineBivariateVonMises(t, 0 * one, 2 * one, 2 * one, correlation=0.1 * one)


def _linear_hmm(t: Tensor) -> Any:
    one, eye = torch.ones(1), torch.eye(1)
    start = dist.StudentT(3.0, _columns(t, 1), 1.0).to_event(1)
    noise = dist.Normal(0 * one, 1.0).to_event(1)
    return dist.LinearHMM(start, eye, noise, eye, noise, duration=3)


MATCHING = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 0, 2]]).repeat(2, 1)
PAIRS = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0], [1, 0, 0, 1]]).repeat(2, 1)
WITHOUT_LATENTS: dict[str, tuple[Build, Tensor]] = {  # they take no batch, or are slow in one
    "SineBivariateVonMises": (_bivariate, torch.zeros(N, 2)),
    "OneOneMatching": (lambda t: dist.OneOneMatching(t * torch.eye(3)), MATCHING),
    "OneTwoMatching": (lambda t: dist.OneTwoMatching(t * torch.eye(4)[:, :2]), PAIRS),
}
OBSERVED: dict[str, tuple[Build, Tensor]] = {
    "Uniform": (lambda t: dist.Uniform(-1.0, t + 8.0), torch.linspace(-0.5, 1.0, N)),
    "GeneralizedPareto": (lambda t: dist.GeneralizedPareto(0.0, t.exp(), 0.3), torch.ones(N)),
    "OneHotCategoricalStraightThrough": (
        lambda t: dist.OneHotCategoricalStraightThrough(logits=_columns(t, 3)),
        torch.eye(3).repeat(2, 1),
    ),
}
LATENT: dict[str, Build] = {
    "SineBivariateVonMises": _bivariate,
    "Uniform": lambda t: dist.Uniform(-1.0, 2.0 + 0 * t),
    "GeneralizedPareto": lambda t: dist.GeneralizedPareto(0.0, t.exp(), 0.3),
    "MixtureSameFamily": lambda t: dist.MixtureSameFamily(
        dist.Categorical(logits=torch.zeros(3)),
        dist.Normal(_columns(t, 3) + torch.arange(3.0), 1.0),
    ),
    "MixtureSameFamily of positive vectors": lambda t: dist.MixtureSameFamily(
        dist.Categorical(logits=torch.zeros(3)),
        dist.LogNormal(_columns(_columns(t, 3), 2), 1.0).to_event(1),
    ),
}
TAU = torch.tensor(0.5)
NAMED: list[tuple[str, Build, str]] = [
    ("observed", _linear_hmm, "LinearHMM has no log_prob"),
    ("local", _linear_hmm, "LinearHMM has no log_prob"),
    (
        "global",
        lambda t: dist.GaussianScaleMixture(torch.ones(2), torch.zeros(3), torch.ones(3)),
        "GaussianScaleMixture: its log_prob",
    ),
    ("local", lambda t: dist.LKJ(3, t.exp()), "LKJ cannot be expanded"),
    ("local", lambda t: dist.SoftAsymmetricLaplace(t, 1.0, 1.0), "cannot be expanded"),
    ("local", lambda t: dist.VonMises3D(_columns(t, 3)), "VonMises3D cannot be sampled"),
    ("local", lambda t: dist.TruncatedPolyaGamma(t), "TruncatedPolyaGamma cannot be sampled"),
    ("local", lambda t: dist.RelaxedBernoulliStraightThrough(TAU, logits=t), "its draws are"),
    (
        "global",
        lambda t: dist.RelaxedOneHotCategoricalStraightThrough(TAU, logits=_columns(t, 3)),
        "its draws are",
    ),
    ("global", lambda t: dist.OneOneMatching(t * torch.eye(3)), "takes 6 values"),
    ("global", lambda t: dist.OneHotCategoricalStraightThrough(logits=_columns(t, 3)), "takes 3"),
]


@pytest.mark.parametrize("name", [*OBSERVED, *WITHOUT_LATENTS])
def test_observed_distribution_is_fitted_and_exported(name: str) -> None:
    role = "observed" if name in OBSERVED else "without latents"
    build, x = (OBSERVED | WITHOUT_LATENTS)[name]
    run = _fit(build, role, x)
    assert math.isfinite(run.results["bound"])
    assert math.isfinite(run.results["log_evidence"])
    assert run.sample(3)["x"].shape == (3, *x.shape[1:])
    assert run.to_arviz(x, num_samples=5).log_likelihood["x"].shape[-1] == N


@pytest.mark.slow
@pytest.mark.parametrize("role", ["local", "global"])
@pytest.mark.parametrize("name", LATENT)
def test_latent_distribution_has_a_default_guide(name: str, role: str) -> None:
    run = _fit(LATENT[name], role)
    assert math.isfinite(run.results["log_evidence"])
    assert run.sample(3)["z"].isfinite().all()


@pytest.mark.parametrize(("role", "build", "words"), NAMED)
def test_unusable_distribution_is_rejected_with_its_site(
    role: str, build: Build, words: str
) -> None:
    x = torch.zeros(N, 3, 1) if role == "observed" else None
    with pytest.raises(ValueError) as caught:
        _fit(build, role, x)
    assert words in str(caught.value)
    assert ("'x'" if role == "observed" else "'z'") in str(caught.value)


def test_improper_prior_is_trained_and_its_rows_are_not_drawn() -> None:
    run = _fit(lambda t: dist.ImproperUniform(constraints.real, (), ()), "global")
    assert math.isfinite(run.results["bound"])
    improper = pytest.raises(ValueError, match=r"prior of '.*' is improper: nothing can be drawn")
    with run.pair.scope(), improper:
        simulate(run.model, *run.example_rows)


def test_check_lists_a_distribution_without_density() -> None:
    program = Program(_linear_hmm, "observed")

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    issues = check(program, guide, torch.zeros(N, 3, 1))
    assert [(issue.code, issue.site) for issue in issues] == [("no-density", "x")]


def test_site_that_cannot_be_sampled_is_named_after_the_fit() -> None:
    x = torch.tensor([[1.0, 0.0, 0.0]]).repeat(N, 1)
    run = _fit(lambda t: dist.VonMises3D(_columns(t, 3)), "observed", x)
    with pytest.raises(ValueError, match="Site 'x': VonMises3D cannot be sampled"):
        run.sample(3)


def test_error_of_the_program_is_not_a_fault_of_a_distribution() -> None:
    with pytest.raises((RuntimeError, ValueError)) as caught:
        pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(3)))
    assert distribution_fault(caught.value) is None
