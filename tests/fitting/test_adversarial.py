"""Adversarial training against exact divergences of known densities."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from ppl_lvm import fit, fit_adversarial
from ppl_lvm.data import load_data
from ppl_lvm.diagnostics.two_sample import discriminate
from ppl_lvm.divergences import ForwardKL, Grid, JensenShannon, ReverseKL
from ppl_lvm.divergences.density_ratio import (
    fit_log_ratio,
    logistic_loss,
    maximum_likelihood,
    minimax,
    non_saturating,
)
from ppl_lvm.models.implicit import Implicit

DATA = Normal(torch.tensor(0.4, dtype=torch.float64), torch.tensor(1.1, dtype=torch.float64))
START = (-0.3, 0.9)  # the generator's mean and standard deviation
GRID = Grid([-12.0], [12.0], cells=1200)
POINTS = GRID.points(DATA.mean)


def divergence(kind: Any, mean: Tensor, sd: Tensor) -> Tensor:
    """By quadrature, from the data's normal to the generator's."""
    log_p, log_q = DATA.log_prob(POINTS[:, 0]), Normal(mean, sd).log_prob(POINTS[:, 0])
    value: Tensor = kind().on_grid(POINTS, log_p, log_q, GRID.volume)
    return value


TARGETS: dict[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] = {
    minimax: lambda m, s: 2 * divergence(JensenShannon, m, s),
    non_saturating: lambda m, s: divergence(ReverseKL, m, s) - 2 * divergence(JensenShannon, m, s),
    maximum_likelihood: lambda m, s: divergence(ForwardKL, m, s),
}


def gradient(form: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    at = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(form(at[0], at[1]), at)
    return slope


def generator_cost(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """E f(a*(x)) over x = m + s z by quadrature, with the optimal discriminator a* fixed."""
    weights = Normal(0.0, 1.0).log_prob(POINTS[:, 0]).exp() * GRID.volume

    def form(mean: Tensor, sd: Tensor) -> Tensor:
        x = mean + sd * POINTS[:, 0]
        a = DATA.log_prob(x) - Normal(mean.detach(), sd.detach()).log_prob(x)
        return weights @ f(a)

    return form


@pytest.mark.parametrize("f", TARGETS, ids=lambda f: f.__name__)
def test_generator_objective_has_the_gradient_of_its_divergence_only(f: Any) -> None:
    ours = gradient(generator_cost(f))
    torch.testing.assert_close(ours, gradient(TARGETS[f]), atol=1e-9, rtol=1e-9)
    for other, target in TARGETS.items():
        if other is not f:
            assert not torch.allclose(ours, gradient(target), atol=1e-2)


def test_optimal_discriminator_is_the_log_ratio_and_its_loss_a_divergence() -> None:
    mean, sd = torch.tensor(START, dtype=torch.float64)
    p, q = DATA, Normal(mean, sd)
    log_p, log_q = p.log_prob(POINTS[:, 0]), q.log_prob(POINTS[:, 0])

    def loss(a: Tensor) -> Tensor:
        of_p, of_q = log_p.exp() * nn.functional.softplus(-a), log_q.exp() * minimax(a)
        return (of_p - of_q).sum() * GRID.volume

    best = (log_p - log_q).requires_grad_()
    value = loss(best)
    (slope,) = torch.autograd.grad(value, best)
    assert float(slope.abs().max()) < 1e-12
    js = divergence(JensenShannon, q.mean, q.stddev)
    assert value.item() == pytest.approx(2 * math.log(2) - 2 * float(js), abs=1e-9)
    a = torch.tensor([0.3, -1.0])
    assert float(logistic_loss(a, a)) == pytest.approx(float((-minimax(-a) - minimax(a)).mean()))


class Quadratic(nn.Module):
    """a(x) = b₀ + b₁ x + b₂ x²: the log ratio of two normals, exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        powers = torch.cat([torch.ones_like(x), x, x**2], -1)
        return powers @ self.b.to(x)


def test_trained_discriminator_is_the_log_ratio_of_two_normals() -> None:
    torch.manual_seed(0)
    x, y = Normal(0.5, 1.0).sample((20_000, 1)), Normal(-0.5, 1.0).sample((5_000, 1))
    a = fit_log_ratio(x, y, Quadratic(), num_steps=200, lr=0.05, weight_decay=0.0)
    # log p - log q = x; the standard error of the slope from 5,000 rows is about 0.03.
    torch.testing.assert_close(
        a.get_parameter("b"), torch.tensor([0.0, 1.0, 0.0]), atol=0.1, rtol=0
    )


class Affine(nn.Module):
    """x = m + s z."""

    def __init__(self) -> None:
        super().__init__()
        self.m, self.s = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))

    def draw(self, n: int) -> Tensor:
        return self.m + self.s * torch.randn(n, 1)


@pytest.mark.slow
@pytest.mark.parametrize("f", TARGETS, ids=lambda f: f.__name__)
def test_every_objective_fits_a_normal(f: Any) -> None:
    torch.manual_seed(0)
    x = 1.0 + 0.7 * torch.randn(2000, 1)
    affine, quadratic = Affine(), Quadratic()
    adversaries = fit_adversarial(
        affine,
        x,
        objective=f,
        discriminator=quadratic,
        num_steps=500,
        discriminator_steps=3,
        penalty=0.02,
        optimizer="Adam(lr=0.02, betas=(0.5, 0.9))",
    )
    assert adversaries.generator.m.item() == pytest.approx(1.0, abs=0.15)
    assert abs(adversaries.generator.s.item()) == pytest.approx(0.7, abs=0.15)
    assert affine.m.item() == 0.0
    assert quadratic.b.abs().sum().item() == 0.0
    assert sum(adversaries.history["jensen_shannon"][:20]) / 20 < math.log(2)


@pytest.mark.slow
def test_two_sample_test_has_its_level_and_detects_a_difference() -> None:
    torch.manual_seed(0)
    p_values = []
    for seed in range(12):
        x, y = torch.randn(60, 2), torch.randn(60, 2)
        p_values.append(discriminate(x, y, discriminator=_linear(), seed=seed).p_value)
    assert (
        sum(p < 0.05 for p in p_values) <= 4
    )  # 12 tests at 0.05: more than 4 with probability 1/5,000
    far = discriminate(torch.randn(300, 2), 1.5 * torch.randn(300, 2) + 1, seed=0)
    assert far.p_value < 1e-4
    assert far.findings()[0].verdict == "bad"


def _linear() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))


@pytest.mark.slow
def test_training_of_an_implicit_model_lowers_the_accuracy_of_the_two_sample_test() -> None:
    x = load_data("moons(n=600)").tensors[0]
    before = fit_adversarial(Implicit(latent=2, hidden=(32,)), x, num_steps=1, batch_size=64)
    after = fit_adversarial(Implicit(latent=2, hidden=(32,)), x, num_steps=300, batch_size=64)
    accuracies = [run.two_sample(x).accuracy["discriminator"] for run in (before, after)]
    assert accuracies[1] < accuracies[0] - 0.1
    assert after.generator.draw(5).shape == (5, 2)


def test_implicit_model_loads_a_state_of_known_sizes() -> None:
    x = torch.randn(9, 3) + 4
    model = Implicit(latent=2, hidden=(5,))
    model.initialize(x)
    again = Implicit(latent=2, hidden=(5,))
    again.load_state_dict(model.state_dict())
    z = torch.randn(4, 2)
    torch.testing.assert_close(again.push(z), model.push(z))


def test_fit_adversarial_rejects_unsuitable_data_networks_and_options() -> None:
    x = torch.randn(30, 2)
    with pytest.raises(ValueError, match=r"of floating-point numbers, got shape \(30,\)"):
        fit_adversarial(Implicit(), x[:, 0])
    with pytest.raises(ValueError, match="discriminator_steps=0 is too small"):
        fit_adversarial(Implicit(), x, discriminator_steps=0)
    for wrong, message in (
        (nn.Linear(3, 1), r"does not run on rows of shape \(2,\)"),
        (nn.Linear(2, 1), r"Linear gives \(2, 1\) of \(2, 2\). End it with nn.Flatten\(0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_adversarial(Implicit(), x, discriminator=wrong)
    gap = x.where(torch.arange(30)[:, None] != 7, torch.nan)
    with pytest.raises(ValueError, match=r"row 8 \(index 7\), column 1 .* is missing \(2 such"):
        fit_adversarial(Affine(), load_data(gap, missing="keep"))
    with pytest.raises(ValueError, match="same columns"):
        fit_log_ratio(x, x[:, :1])
    with pytest.raises(ValueError, match="20 rows of each; got 30 and 9"):
        discriminate(x, x[:9])
    with pytest.raises(ValueError, match="number of columns is not known"):
        Implicit().draw(3)
    with pytest.raises(ValueError, match="fit_adversarial"):
        fit(Implicit(), None, x, num_steps=2)
    with pytest.raises(ValueError, match="latent=0 is too small"):
        Implicit(latent=0)
    with pytest.raises(FloatingPointError, match="The generator's loss is nan at step 0"):
        fit_adversarial(Implicit(), x, objective=lambda a: a * math.nan, num_steps=2)
