"""Relaxed draws in programs with jumps; supports that move."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from estimator_rejections import X, rejections
from pyro.distributions import (
    AffineBeta,
    Bernoulli,
    Gamma,
    LogNormal,
    Normal,
    OneHotCategorical,
    Pareto,
    TransformedDistribution,
    Uniform,
    Weibull,
)
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform, ExpTransform

import ppl_lvm.estimators as estimators
from ppl_lvm.checks import check

pytestmark = pytest.mark.filterwarnings("ignore:Particles run one by one")


Link = Callable[[Tensor], Tensor]
_NET = nn.Sequential(nn.Linear(2, 4), nn.LeakyReLU(), nn.LayerNorm(4), nn.Linear(4, 1))


def _inplace(z: Tensor) -> Tensor:
    out = torch.zeros_like(z)
    out[..., 0] = z[..., 1]
    return out.sum(-1)


def _without_gradient(z: Tensor) -> Tensor:
    with torch.no_grad():
        return z.sum(-1)


SMOOTH: dict[str, Link] = {
    "arithmetic": lambda z: (z * 2 - (1 - z)).sum(-1),
    "network": lambda z: _NET(z).squeeze(-1),
    "maximum": lambda z: z.max(-1).values + z.clamp(0.0, 1.0).sum(-1),
    "assignment": _inplace,
    "finite": lambda z: torch.where(z.isfinite(), z, torch.zeros_like(z)).sum(-1),
}
JUMPS: dict[str, Link] = {
    "comparison": lambda z: torch.where(z > 0.5, 1.0, -1.0).sum(-1),
    "equal": lambda z: (z[..., 0] == 1).to(z),
    "rounding": lambda z: z.round().sum(-1),
    "division": lambda z: (z // 1).sum(-1),
    "index": lambda z: torch.tensor([0.0, 1.0])[z.long()].sum(-1),
    "largest": lambda z: z.max(-1).indices + z[..., 0],
    "sign": lambda z: torch.sign(z - 0.5).sum(-1),
    "detach": lambda z: z.detach().sum(-1),
    "no_grad": _without_gradient,
    "branch": lambda z: z.sum(-1) + (1.0 if z.sum() > 3 else 0.0),
    "number": lambda z: z.sum(-1) + z.flatten()[0].item(),
}
RELAXED = ("REBAR", "RELAX", "GumbelSoftmax", "StraightThrough")


def _bits(link: Link) -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(torch.full((2,), 0.3)).to_event(1))
            pyro.sample("x", Normal(link(z), 0.7), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=torch.zeros(len(x), 2)).to_event(1))

    return model, guide


@pytest.mark.parametrize("name", JUMPS)
def test_jump_in_relaxed_bits_is_rejected_with_its_line(name: str) -> None:
    pair = _bits(JUMPS[name])
    reasons = rejections(*pair)
    assert set(RELAXED) <= set(reasons)
    assert all(__file__ in reasons[each] and "'z'" in reasons[each] for each in RELAXED)
    assert "LeaveOneOut" not in reasons
    assert math.isfinite(estimators.RELAX(relax_model=False).loss(*pair, X))
    support = {each.name: each.supported for each in check(*pair, X).estimators}
    assert not any(support[each] for each in RELAXED)


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_function_of_relaxed_bits_is_accepted(name: str) -> None:
    assert not set(RELAXED) & set(rejections(*_bits(SMOOTH[name])))


def test_comparison_in_one_hot_draws_is_rejected() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", OneHotCategorical(torch.ones(3)))
            pyro.sample("x", Normal(z.argmax(-1).float(), 0.7), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", OneHotCategorical(torch.ones(len(x), 3)))

    reasons = rejections(model, guide)
    assert {"GumbelSoftmax", "StraightThrough"} <= set(reasons)
    assert "argmax" in reasons["GumbelSoftmax"]


BOUND = torch.tensor(2.0, requires_grad=True)
MOVING = {
    "uniform": lambda: Uniform(0.0, BOUND),
    "beta": lambda: AffineBeta(torch.tensor(2.0), torch.tensor(2.0), torch.tensor(0.0), BOUND),
    "pareto": lambda: Pareto(BOUND, 3.0),
    "affine": lambda: TransformedDistribution(Uniform(0.0, 1.0), [AffineTransform(0.0, BOUND)]),
}
FIXED = {
    "weibull": lambda: Weibull(BOUND, 2.0),
    "normal": lambda: LogNormal(BOUND, 1.0),
    "uniform": lambda: Uniform(0.0, 2.0),
    "exponential": lambda: TransformedDistribution(Uniform(0.0, 1.0), [ExpTransform()]),
    "gamma": lambda: Gamma(BOUND, 1.0),
}


def _support_pair(build: Callable[[], Any]) -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", build())

    return model, guide


@pytest.mark.parametrize("name", MOVING)
def test_support_that_depends_on_parameters_is_rejected_at_fixed_draws(name: str) -> None:
    reasons = rejections(*_support_pair(MOVING[name]))
    fixed = {each for each in estimators.__all__ if getattr(estimators, each).fixed_draws}
    assert {each for each, reason in reasons.items() if "support" in reason} == fixed


@pytest.mark.parametrize("name", FIXED)
def test_support_that_does_not_depend_on_parameters_is_accepted(name: str) -> None:
    assert "StickingTheLanding" not in rejections(*_support_pair(FIXED[name]))


def test_sticking_the_landing_on_a_moving_support_would_be_biased(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Deliberately wrong: without the check the gradient misses E ∇log q = -1/φ."""
    monkeypatch.setattr(estimators.StickingTheLanding, "fixed_draws", False)
    torch.manual_seed(0)
    pair, x = _support_pair(MOVING["uniform"]), torch.full((20_000,), 0.8)
    gradients = [
        torch.autograd.grad(cls().differentiable_loss(*pair, x) / len(x), BOUND)[0]
        for cls in (estimators.ELBO, estimators.StickingTheLanding)
    ]
    # Exact: d/dφ of E_{z ~ U(0, φ)}[-z²/2 - (z - .8)²/.98] + log φ at φ = 2, with its sign.
    exact = (2 * 2.0 / 6) + (2 * 2.0 / 3 - 0.8) / 0.98 - 0.5
    assert gradients[0].item() == pytest.approx(exact, abs=0.03)
    assert abs(gradients[1].item() - exact) > 0.3
