"""Divergences against closed forms and quadrature."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro.distributions import Categorical, MixtureSameFamily, Normal
from torch import Tensor

from ppl_lvm.divergences import (
    DIVERGENCES,
    MMD,
    ChiSquare,
    Divergence,
    EnergyDistance,
    ForwardKL,
    Grid,
    JensenShannon,
    RenyiDivergence,
    ReverseKL,
    Target,
    as_target,
    fit_divergence,
)
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models.gaussian import Gaussian

GRID = Grid([-12.0], [12.0], cells=1200)
P_MEAN, P_SD = 0.4, 1.1
START = (-0.3, 0.9)  # of q: its mean and standard deviation


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(mean: Any, sd: Any) -> Any:
    one = torch.ones(1, dtype=torch.float64)
    return Normal(mean * one, sd * one).to_event(1)


def bimodal() -> Any:
    """Two unequal modes at -2 and 2."""
    modes = Normal(double(-2.0, 2.0)[:, None], double(0.6, 0.8)[:, None]).to_event(1)
    return MixtureSameFamily(Categorical(double(0.4, 0.6)), modes)


# Closed forms for normals p and q


def kl(a: Tensor, s: Tensor, b: Tensor, t: Tensor) -> Tensor:
    return (t / s).log() + (s**2 + (a - b) ** 2) / (2 * t**2) - 0.5


def renyi(alpha: float) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def form(a: Tensor, s: Tensor, b: Tensor, t: Tensor) -> Tensor:
        v = alpha * t**2 + (1 - alpha) * s**2
        spread = (t / s).log() + (t**2 / v).log() / (2 * (alpha - 1))
        return spread + 0.5 * alpha * (a - b) ** 2 / v

    return form


def distance(mean: Tensor, variance: Tensor) -> Tensor:
    """E|X| of a normal."""
    sd = variance.sqrt()
    return sd * math.sqrt(2 / math.pi) * (-0.5 * (mean / sd) ** 2).exp() + mean * torch.erf(
        mean / (sd * math.sqrt(2))
    )


def energy(a: Tensor, s: Tensor, b: Tensor, t: Tensor) -> Tensor:
    within = distance(0 * a, 2 * s**2) + distance(0 * a, 2 * t**2)
    return 2 * distance(a - b, s**2 + t**2) - within


def mmd(a: Tensor, s: Tensor, b: Tensor, t: Tensor) -> Tensor:
    def mean_kernel(gap: Tensor, variance: Tensor) -> Tensor:
        return (1 / (1 + variance)).sqrt() * (-0.5 * gap**2 / (1 + variance)).exp()

    within = mean_kernel(0 * a, 2 * s**2) + mean_kernel(0 * a, 2 * t**2)
    return within - 2 * mean_kernel(a - b, s**2 + t**2)


CLOSED: dict[str, tuple[Divergence, Any]] = {
    "forward": (ForwardKL(), kl),
    "reverse": (ReverseKL(), lambda a, s, b, t: kl(b, t, a, s)),
    "renyi 0.5": (RenyiDivergence(0.5), renyi(0.5)),
    "renyi 1.5": (RenyiDivergence(1.5), renyi(1.5)),
    "chi square": (ChiSquare(), lambda *normals: renyi(2.0)(*normals).exp() - 1),
    "mmd": (MMD(), mmd),
    "energy": (EnergyDistance(), energy),
}


def value_and_gradient(form: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Value and gradient of a function of q's mean and standard deviation, at START."""
    at = double(*START).requires_grad_()
    value = form(at[0], at[1])
    (gradient,) = torch.autograd.grad(value, at)
    return value.detach(), gradient


def on_grid(divergence: Divergence, p: Any) -> Callable[[Tensor, Tensor], Tensor]:
    points = GRID.points(double())

    def form(mean: Tensor, sd: Tensor) -> Tensor:
        log_q = normal(mean, sd).log_prob(points)
        return divergence.on_grid(points, p.log_prob(points), log_q, GRID.volume)

    return form


@pytest.mark.parametrize("name", CLOSED)
def test_grid_sum_matches_closed_form_and_gradient(name: str) -> None:
    divergence, form = CLOSED[name]
    p = double(P_MEAN, P_SD)
    exact = value_and_gradient(lambda b, t: form(p[0], p[1], b, t))
    grid_sum = value_and_gradient(on_grid(divergence, normal(P_MEAN, P_SD)))
    # The error of a kernel with a kink (the distance) is the square of a cell's width.
    tolerance = 1e-3 if isinstance(divergence, EnergyDistance) else 1e-7
    torch.testing.assert_close(grid_sum, exact, atol=tolerance, rtol=tolerance)
    swapped = value_and_gradient(lambda b, t: kl(p[0], p[1], b, t) if name == "reverse" else 0 * b)
    assert not torch.allclose(grid_sum[1], swapped[1], atol=1e-2)


class CountsItself(MMD):
    """A wrong twin: pairs of a sample with itself make p and q look different."""

    def estimate(self, p: Target, q: Any, n: int) -> Tensor:
        assert p.draw is not None
        x, y = p.draw(n), q.rsample((n,))
        within = self.kernel(x, x).mean() + self.kernel(y, y).mean()
        return within - 2 * self.kernel(x, y).mean()


def estimates(divergence: Divergence, p: Any, n: int, repeats: int) -> tuple[Tensor, Tensor]:
    """Estimates of value and gradient (repeats, 3), and their quadrature (3,)."""
    target = as_target(p)
    torch.manual_seed(0)
    rows = []
    for _ in range(repeats):
        value, gradient = value_and_gradient(
            lambda mean, sd: divergence.estimate(target, normal(mean, sd), n)
        )
        rows.append(torch.cat([value.reshape(1), gradient]))
    value, gradient = value_and_gradient(on_grid(divergence, p))
    return torch.stack(rows), torch.cat([value.reshape(1), gradient])


def max_z_score(samples: Tensor, exact: Tensor) -> float:
    """Largest error of value and gradient, in standard errors."""
    error = samples.std(0) / math.sqrt(len(samples))
    return float(((samples.mean(0) - exact) / error).abs().max())


@pytest.mark.parametrize(
    "divergence",
    [ForwardKL(), ReverseKL(), JensenShannon(), MMD((0.5, 2.0)), EnergyDistance()],
    ids=lambda d: type(d).__name__,
)
def test_estimates_are_unbiased_for_two_modes(divergence: Divergence) -> None:
    assert divergence.unbiased
    assert max_z_score(*estimates(divergence, bimodal(), n=20, repeats=600)) < 5


def test_importance_weighted_estimates_are_unbiased_for_wide_q() -> None:
    narrow = normal(0.1, 0.5)
    assert max_z_score(*estimates(ChiSquare(), narrow, n=50, repeats=600)) < 5
    assert max_z_score(*estimates(RenyiDivergence(0.5), narrow, n=20_000, repeats=50)) < 5


def test_renyi_of_few_samples_is_biased_as_documented() -> None:
    values, exact = estimates(RenyiDivergence(0.5), normal(0.1, 0.5), n=2, repeats=2000)
    assert not RenyiDivergence.unbiased
    assert float(values[:, 0].mean() - exact[0]) > 5 * float(values[:, 0].std()) / math.sqrt(2000)


def test_biased_twin_of_mmd_is_detected() -> None:
    assert max_z_score(*estimates(CountsItself((0.5, 2.0)), bimodal(), n=20, repeats=600)) > 5


def test_jensen_shannon_lies_between_0_and_log_2() -> None:
    same = value_and_gradient(on_grid(JensenShannon(), normal(*START)))
    torch.testing.assert_close(same, (double(0.0)[0], double(0.0, 0.0)), atol=1e-12, rtol=0)
    far = value_and_gradient(on_grid(JensenShannon(), normal(11.0, 0.2)))[0]
    assert 0.69 < float(far) <= math.log(2) + 1e-12


def fitted(divergence: Divergence, center: float = 1.0, scale: float = 1.0) -> tuple[float, float]:
    family = Gaussian(1, center, scale).double()
    grid = Grid([-10.0], [10.0], cells=150)
    q = fit_divergence(divergence, bimodal(), family, num_steps=300, grid=grid).family.density()
    return q.mean.item(), q.stddev.item()


def test_forward_kl_matches_moments_and_reverse_kl_seeks_a_mode() -> None:
    p = bimodal()
    mean, sd = fitted(ForwardKL())
    assert mean == pytest.approx(float(p.mean), abs=1e-2)
    assert sd == pytest.approx(float(p.stddev), abs=1e-2)
    mean, sd = fitted(ReverseKL())
    assert abs(mean - 2.0) < 0.1
    assert abs(sd - 0.8) < 0.1


def test_renyi_goes_from_mode_seeking_to_mass_covering_as_alpha_grows() -> None:
    few, many = (fitted(RenyiDivergence(alpha))[1] for alpha in (0.1, 0.9))
    assert few < 1.0 < 1.5 < many < fitted(ChiSquare(), scale=2.0)[1]


def test_forward_kl_to_data_equals_maximum_likelihood_by_fit() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 2) @ torch.tensor([[1.0, 0.5], [0.0, 0.7]]) + 1
    run = fit(Gaussian(2), None, x, num_steps=400, optimizer="Adam(lr=0.05)")
    mle = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))
    assert run.results["bound"] == pytest.approx(float(mle.log_prob(x).mean()), abs=1e-3)
    all_rows = Target(draw=lambda n: x)
    q = fit_divergence(ForwardKL(), all_rows, Gaussian(2), num_steps=400, optimizer="Adam(lr=0.05)")
    torch.testing.assert_close(q.family.mean, run.parameters()["mean"], atol=1e-2, rtol=0)
    assert q.history[-1] == pytest.approx(-run.results["bound"], abs=1e-3)


@pytest.mark.parametrize("divergence", [ForwardKL(), MMD((0.5, 2.0)), EnergyDistance()])
def test_sample_based_divergences_fit_data(divergence: Divergence) -> None:
    torch.manual_seed(0)
    x = 3 + 0.5 * torch.randn(400, 1)
    q = fit_divergence(divergence, x, Gaussian(1, center=2.0), num_steps=300).family.density()
    assert q.mean.item() == pytest.approx(3.0, abs=0.1)
    assert q.stddev.item() == pytest.approx(0.5, abs=0.15)


def test_array_and_tensor_targets_agree() -> None:
    x = torch.randn(40, 2)
    first, second = (
        fit_divergence(EnergyDistance(), rows, Gaussian(2), num_steps=3)
        for rows in (x, x.double().numpy())
    )
    assert first.history == second.history


def test_every_divergence_has_a_reference_or_bounds() -> None:
    assert {type(d) for d, _ in CLOSED.values()} | {JensenShannon} == set(DIVERGENCES)


def test_fit_divergence_is_deterministic_and_copies_the_family() -> None:
    family = Gaussian(1)
    first, second = (
        fit_divergence(EnergyDistance(), bimodal(), family.double(), num_steps=5) for _ in range(2)
    )
    assert first.history == second.history
    assert family.mean.item() == 0.0 != first.family.mean.item()


def test_fit_divergence_rejects_unusable_targets_families_and_arguments() -> None:
    x, family = torch.randn(9, 1), Gaussian(1)
    with pytest.raises(ValueError, match="ReverseKL needs the target's density"):
        fit_divergence(ReverseKL(), x, family)
    loose = Target(lambda x: -x.square().sum(-1), normalized=False)
    with pytest.raises(ValueError, match="ChiSquare needs the target's normalized density"):
        fit_divergence(ChiSquare(), loose, family)
    with pytest.raises(ValueError, match="normalized density must be known"):
        fit_divergence(ReverseKL(), loose, family, grid=GRID)
    with pytest.raises(ValueError, match=r"Wrap a scalar distribution"):
        as_target(Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="Renyi: alpha must be > 0"):
        RenyiDivergence(1.0)
    with pytest.raises(ValueError, match=r"bandwidths=.* too small"):
        MMD((0.0,))
    with pytest.raises(ValueError, match="needs low < high for every column"):
        Grid([1.0], [0.0])
    with pytest.raises(ValueError, match="no parameter to fit"):
        fit_divergence(ForwardKL(), x, normal(0.0, 1.0))
    for target, message in (
        (x[:, 0], r"rows \(N, P\), got \(9,\). Use x.unsqueeze\(1\) for one column"),
        (x[:0], r"got \(0, 1\)"),
        (x.where(torch.arange(9)[:, None] != 4, math.nan), "row 4, column 0 is nan"),
        (torch.randn(9, 2), r"target has rows of shape \(2,\), Gaussian has rows of shape \(1,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_divergence(MMD(), target, family)
    with pytest.raises(ValueError, match=r"grid has rows of shape \(1,\), Gaussian has"):
        fit_divergence(ForwardKL(), Gaussian(2).density(), Gaussian(2), grid=GRID)
    with pytest.raises(ValueError, match=r"divergence=<MMD> is a class\. Pass a Divergence"):
        fit_divergence(MMD, x, family)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be an object Gaussian\(…\), got the class"):
        fit_divergence(MMD(), x, Gaussian)
    with pytest.raises(ValueError, match=r"Linear has no density\(\)"):
        fit_divergence(MMD(), x, torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"num_steps=0 is too small\. Pass a whole number"):
        fit_divergence(MMD(), x, family, num_steps=0)
    nowhere = Target(lambda x: x.sum(-1) - math.inf)
    with pytest.raises(FloatingPointError, match="ReverseKL is inf at step 0"):
        fit_divergence(ReverseKL(), nowhere, family)
