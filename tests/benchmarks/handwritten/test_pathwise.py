"""Hand-written pathwise gradients equal their targets' by Gauss-Hermite quadrature."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from ppl_lvm.benchmarks.gradient_suite import exact
from ppl_lvm.benchmarks.gradient_suite.programs import normal_grid
from ppl_lvm.benchmarks.handwritten import decoders, linear_gaussian, pathwise, score

X = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
Loss = Callable[[dict[str, Tensor], Tensor], Tensor]


@pytest.fixture
def params() -> dict[str, Tensor]:
    torch.set_default_dtype(torch.float64)
    params = linear_gaussian.parameters()
    with torch.no_grad():
        params["model.weight"] *= 0.5  # keeps log w smooth enough for the grid
    return params


def grid(num_particles: int, points: int = 120) -> tuple[Tensor, Tensor]:
    """Noise (K, G, 1) and weights (G,) of a tensor grid."""
    noise, weight = normal_grid(num_particles, points)
    return noise.unsqueeze(-1), weight


def still(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach() if k.startswith("guide") else v for k, v in params.items()}


def plain(
    bound: Callable[[Tensor, Tensor], Tensor], params: dict[str, Tensor], z: Tensor
) -> Tensor:
    log_p = linear_gaussian.log_p(params, X, z)
    return bound(log_p, linear_gaussian.log_q(params, X, z))


def stl(params: dict[str, Tensor], z: Tensor) -> Tensor:
    log_q = linear_gaussian.log_q(still(params), X, z)
    return pathwise.stl(linear_gaussian.log_p(params, X, z), log_q)


def dreg(params: dict[str, Tensor], z: Tensor, alpha: float = 0.0) -> Tensor:
    log_q = linear_gaussian.log_q(still(params), X, z)
    return pathwise.dreg_renyi(z, linear_gaussian.log_p(params, X, z), log_q, alpha)


def stl_within_iwae(params: dict[str, Tensor], z: Tensor) -> Tensor:
    log_q = linear_gaussian.log_q(still(params), X, z)
    return pathwise.iwae(linear_gaussian.log_p(params, X, z), log_q)


def bias(loss: Loss, bound: Loss, params: dict[str, Tensor], num_particles: int) -> float:
    noise, weight = grid(num_particles)
    expected = exact.gradients(
        weight * bound(params, linear_gaussian.place(params, X, noise)), list(params.values())
    )
    reached = exact.gradients(
        weight * loss(params, linear_gaussian.place(params, X, noise)), list(params.values())
    )
    return ((reached - expected).norm() / expected.norm()).item()


RIGHT: dict[str, tuple[Loss, Loss]] = {
    "stl": (stl, partial(plain, pathwise.elbo)),
    "dreg": (dreg, partial(plain, pathwise.iwae)),
    "dreg-renyi-0.5": (
        partial(dreg, alpha=0.5),
        partial(plain, partial(pathwise.renyi, alpha=0.5)),
    ),
    "dreg-renyi-2": (partial(dreg, alpha=2.0), partial(plain, partial(pathwise.renyi, alpha=2.0))),
}


@pytest.mark.parametrize("name", RIGHT)
def test_handwritten_dreg_is_unbiased(name: str, params: dict[str, Tensor]) -> None:
    assert bias(*RIGHT[name], params, num_particles=2) < 1e-7


def test_handwritten_stl_inside_iwae_is_biased(params: dict[str, Tensor]) -> None:
    assert bias(stl_within_iwae, partial(plain, pathwise.iwae), params, 2) > 0.05


def test_handwritten_bounds_are_ordered_below_evidence(params: dict[str, Tensor]) -> None:
    log_p = linear_gaussian.log_evidence(params, X).item()
    values = []
    for num_particles, points in ((1, 120), (2, 120), (3, 40)):
        noise, weight = grid(num_particles, points)
        z = linear_gaussian.place(params, X, noise)
        values.append((weight * plain(pathwise.iwae, params, z)).sum().item())
    assert values[0] < values[1] < values[2] < log_p
    mean, covariance = linear_gaussian.posterior(params, X)
    q_mean = linear_gaussian.place(params, X, torch.zeros(1, 1))
    variance = (2 * params["guide.log_scale"]).exp()
    ratio = variance / covariance[0, 0]
    kl = 0.5 * (ratio - 1 - ratio.log() + (q_mean - mean) ** 2 / covariance[0, 0])
    assert values[0] == pytest.approx(log_p - kl.item(), abs=1e-10)


def test_handwritten_vr_max_is_the_limit_of_renyi(params: dict[str, Tensor]) -> None:
    noise, weight = grid(2)
    z = linear_gaussian.place(params, X, noise)
    largest = (weight * plain(pathwise.vr_max, params, z)).sum()
    near = (weight * plain(partial(pathwise.renyi, alpha=-5000.0), params, z)).sum()
    assert largest.item() == pytest.approx(near.item(), abs=1e-3)
    assert largest > (weight * plain(pathwise.iwae, params, z)).sum()


def test_handwritten_stl_gradient_has_no_variance_at_posterior(params: dict[str, Tensor]) -> None:
    mean, covariance = linear_gaussian.posterior(params, X)
    with torch.no_grad():
        params["guide.weight"].zero_()
        params["guide.bias"][:] = mean[0]
        params["guide.log_scale"][:] = 0.5 * covariance.diagonal().log()
    guide = [v for k, v in params.items() if k.startswith("guide")]
    noise = torch.randn(4, 1, 1)
    for loss in (stl, dreg):
        gradient = exact.gradients(loss(params, linear_gaussian.place(params, X, noise)), guide)
        assert gradient.abs().max() < 1e-12
    plain_gradient = exact.gradients(
        plain(pathwise.elbo, params, linear_gaussian.place(params, X, noise)), guide
    )
    assert plain_gradient.abs().max() > 1e-2


def mixed_of_one(log_p: Tensor, log_q: Tensor, log_c: Tensor) -> Tensor:
    """One particle has no baseline: the category's signal is log w."""
    return (log_p - log_q + (log_p - log_q).detach() * log_c).mean(0)


@pytest.mark.parametrize("num_particles", [1, 2])
@pytest.mark.parametrize("right", [True, False])
def test_handwritten_mixed_guide_gradient(num_particles: int, right: bool) -> None:
    """Score gradient of the category, pathwise gradient of z; exact sums over both."""
    torch.set_default_dtype(torch.float64)
    params = decoders.parameters()
    noise, weight = grid(num_particles, points=40)
    surrogate = score.mixed if num_particles > 1 else mixed_of_one
    draws = exact.tuples(3, num_particles)  # (K, 3ᴷ)
    c = draws.unsqueeze(-1).expand(-1, -1, noise.shape[1])  # (K, 3ᴷ, G)
    z = decoders.place(params, X, c.flatten(1), noise.repeat(1, draws.shape[1], 1))
    draw = (c.flatten(1), z)
    log_c, log_z = decoders.log_q_parts(params, X, draw)
    log_p = decoders.log_p(params, X, draw)
    weights = weight.repeat(draws.shape[1]) * log_c.sum(0).exp()
    expected = (weights * pathwise.iwae(log_p, log_c + log_z)).sum()
    scored = log_c if right else torch.zeros_like(log_c)
    reached = (weights.detach() * surrogate(log_p, log_c + log_z, scored)).sum()
    pair = [exact.gradients(value, list(params.values())) for value in (reached, expected)]
    error = (pair[0] - pair[1]).norm() / pair[1].norm()
    assert error < 1e-10 if right else error > 0.05


def test_decoders_log_evidence_is_the_log_mean_weight() -> None:
    torch.set_default_dtype(torch.float64)
    params = decoders.parameters()
    draw = decoders.draw(params, X, 200_000)
    w = (decoders.log_p(params, X, draw) - sum(decoders.log_q_parts(params, X, draw))).exp()
    error = w.std(0) / len(w) ** 0.5
    assert ((w.mean(0) - decoders.log_evidence(params, X).exp()).abs() < 5 * error).all()
