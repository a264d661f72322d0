"""Jumps of log-densities in reparameterized draws; continuous functions."""

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.distributions import LogNormal, MultivariateNormal, Normal, Uniform
from pyro.distributions.transforms import spline
from torch import Tensor, nn

import ppl_lvm.estimators as estimators
from ppl_lvm.authoring import without_rsample
from ppl_lvm.checks import check

X = torch.full((4,), 0.8)
ZERO = nn.Parameter(torch.zeros(()))
_NET = nn.Sequential(nn.Linear(2, 4), nn.LeakyReLU(), nn.Linear(4, 1))
_SPLINE = spline(2)
KNOTS = torch.tensor([-1.0, 0.0, 1.0])
VALUES = torch.tensor([0.0, 1.0, -1.0, 2.0])


def _interpolated(z: Tensor) -> Tensor:
    bin = torch.searchsorted(KNOTS, z[..., 0].detach().contiguous()).clamp(1, 2)
    left, right = KNOTS[bin - 1], KNOTS[bin]
    share = (z[..., 0] - left) / (right - left)
    return VALUES[bin - 1] * (1 - share) + VALUES[bin] * share


JUMPS: dict[str, Callable[[Tensor], Tensor]] = {
    "comparison": lambda z: torch.where(z > 0, 1.0, -1.0).sum(-1),
    "product": lambda z: ((z > 0).float() * 2).sum(-1),
    "weight of zero": lambda z: ZERO * (z[..., 0] > 0) + z[..., 1],
    "rounding": lambda z: z.round().sum(-1),
    "straight-through": lambda z: (z + (z.round() - z).detach()).sum(-1),
    "largest": lambda z: VALUES[z.argmax(-1)],
    "index": lambda z: VALUES[z[..., 0].long().clamp(0, 3)],
    "branch": lambda z: z.sum(-1) + (1.0 if z.sum() > 0 else 0.0),
    "remainder": lambda z: (z % 1.0).sum(-1),
    "far": lambda z: torch.where(z[..., 0] > 3.5, 1.0, 0.0) + z[..., 1],
}
CONTINUOUS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda z: torch.where(z > 0, z, torch.zeros_like(z)).sum(-1),
    "leaky": lambda z: (z * torch.where(z > 0, 1.0, 0.1)).sum(-1),
    "network": lambda z: _NET(z).squeeze(-1),
    "clamp": lambda z: (z.abs() + z.clamp(-1.0, 1.0)).max(-1).values,
    "Huber": lambda z: F.smooth_l1_loss(z, torch.zeros_like(z), reduction="none").sum(-1),
    "own Huber": lambda z: torch.where(z.abs() < 1, z**2 / 2, z.abs() - 0.5).sum(-1),
    "sorting": lambda z: z.gather(-1, z.argsort(-1))[..., 0] + z.sort(-1).values[..., 1],
    "interpolation": _interpolated,
    "spline": lambda z: _SPLINE(z).sum(-1),
    "assertion": lambda z: z.sum(-1) if bool((z < 1e6).all()) else z.prod(-1),
    "finite": lambda z: torch.where(z.isfinite(), z, torch.zeros_like(z)).sum(-1),
    "log-sum-exp": lambda z: (z - z.max(-1, keepdim=True).values.detach()).exp().sum(-1),
}


def _pair(link: Callable[[Tensor], Tensor], distribution: Any = Normal) -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", distribution(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", Normal(link(z), 0.7), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", distribution(loc, 1.0).to_event(1))

    return model, guide


def _warning(pair: tuple[Any, Any], name: str = "ELBO", x: Tensor = X) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(estimators, name)().loss(*pair, x)
    return next((str(w.message) for w in caught if "jumps" in str(w.message)), "")


@pytest.mark.parametrize("name", JUMPS)
def test_jump_in_reparameterized_draws_is_named_with_its_line(name: str) -> None:
    warning = _warning(_pair(JUMPS[name]))
    assert __file__ in warning
    assert "draws of 'z'" in warning
    assert ZERO.item() == 0


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_function_of_reparameterized_draws_gives_no_warning(name: str) -> None:
    assert _warning(_pair(CONTINUOUS[name])) == ""


@pytest.mark.parametrize("name", estimators.__all__)
def test_jump_is_named_by_every_estimator_that_follows_the_draws(name: str) -> None:
    pair = _pair(JUMPS["comparison"])
    try:
        warning = _warning(pair, name)
    except ValueError:
        return  # it needs discrete draws
    detached = name in ("ReweightedWakeSleep", "ThermodynamicELBO")
    assert bool(warning) != detached


@pytest.mark.slow
def test_check_names_the_jump() -> None:
    (issue,) = [i for i in check(*_pair(JUMPS["comparison"]), X) if i.code == "jump"]
    assert (issue.severity, issue.site, issue.file) == ("warning", "z", __file__)
    assert not [i for i in check(*_pair(CONTINUOUS["leaky"]), X) if i.code == "jump"]


def test_change_point_and_mask_by_a_draw_are_jumps() -> None:
    def change_point(x: Tensor) -> None:
        tau = pyro.sample("tau", Uniform(0.0, 4.0))
        mean = torch.where(torch.arange(len(x)) < tau.unsqueeze(-1), 0.0, 1.0)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(mean, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("tau", Uniform(0.0, pyro.param("end", torch.tensor(4.0))))

    assert "draws of 'tau'" in _warning((change_point, guide))

    def masked(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", LogNormal(0.0, 1.0))
            with poutine.mask(mask=z > 1):
                pyro.sample("x", Normal(0.0, 1.0), obs=x)

    def positive(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", LogNormal(pyro.param("loc", torch.zeros(len(x))), 1.0))

    assert "draws of 'z'" in _warning((masked, positive))


def test_jump_in_a_draw_without_parameters_gives_no_warning() -> None:
    model, _ = _pair(JUMPS["comparison"])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))

    assert _warning((model, guide)) == ""


def test_jump_that_reaches_no_density_gives_no_warning() -> None:
    def link(z: Tensor) -> Tensor:
        pyro.deterministic("positive", z > 0)
        return z.sum(-1)

    assert _warning(_pair(link)) == ""


def test_score_function_gradient_has_no_fault_at_a_jump() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(torch.where(z > 0, 1.0, -1.0), 0.7), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(loc.expand(len(x)), 1.0).has_rsample_(False))

    assert _warning((model, guide), "LeaveOneOut") == ""


def _shifted(loc: Tensor) -> dict[str, Any]:
    """Distributions of location `loc`, of which the logarithm or the value itself is N(loc, 1)."""
    return {
        "scalar": Normal(loc, 1.0),
        "event": Normal(loc.expand(1), 1.0).to_event(1),
        "transformed": LogNormal(loc, 1.0),
        "masked": Normal(loc, 1.0).mask(torch.tensor(True)),
        "transformed event": LogNormal(loc.expand(1), 1.0).to_event(1),
        "multivariate": MultivariateNormal(loc.expand(1), torch.eye(1)),
    }


@pytest.mark.parametrize("kind", _shifted(torch.zeros(())))
def test_remedy_of_a_jump_has_the_right_gradient_for_every_kind_of_distribution(kind: str) -> None:
    """d/dm E 2·1[z > c] = 2 N(m; 0, 1) for z ~ N(m, 1) and c = 0, or exp z and c = 1."""
    threshold = 1.0 if "transformed" in kind else 0.0
    prior = _shifted(torch.zeros(()))[kind]
    m = torch.tensor(0.4, requires_grad=True)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with poutine.mask(mask=False):
                z = pyro.sample("z", prior)
            z = z.squeeze(-1) if prior.event_dim else z
            pyro.factor("jump", 2.0 * (z > threshold))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=False):
            pyro.sample("z", without_rsample(_shifted(m)[kind]))

    assert _warning((model, guide), "LeaveOneOut") == ""
    pyro.set_rng_seed(0)
    loss = estimators.LeaveOneOut(2)
    x, draws = torch.zeros(500), []
    for _ in range(20):
        (g,) = torch.autograd.grad(loss.differentiable_loss(model, guide, x), m)
        draws.append(-g / len(x))
    sample = torch.stack(draws)
    expected = 2 * Normal(0.0, 1.0).log_prob(m).exp()
    assert (sample.mean() - expected).abs() < 5 * sample.std() / 20**0.5
