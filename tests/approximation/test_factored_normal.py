"""Factored normals on targets with exact moments."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from known_posteriors import linear_normal
from ppl_lvm.approximation import automatic, moments, normal, pathfinder
from ppl_lvm.approximation.factored_normal import FactoredNormal, matched
from ppl_lvm.approximation.methods import approximate
from ppl_lvm.approximation.unconstrained import LogDensity
from ppl_lvm.guides import GlobalLowRankNormal

D = 60


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def example() -> FactoredNormal:
    g = generator()
    basis, _ = torch.linalg.qr(torch.randn(D, 3, generator=g))
    scale = torch.rand(D, generator=g) + 0.1
    return FactoredNormal(torch.randn(D, generator=g), scale, basis, torch.tensor([5.0, 2.0, 0.01]))


def test_factored_normal_equals_its_dense_form():
    factored, v = example(), torch.randn(4, D, generator=generator(1))
    dense = factored.dense()
    u = factored.loc + factored.stretched(v)
    torch.testing.assert_close(factored.standardized(u), v)
    torch.testing.assert_close(factored.log_prob(u), dense.log_prob(u))
    torch.testing.assert_close(factored.sd, dense.sd)
    torch.testing.assert_close(
        factored.stretched(factored.pulled_back(v)), v @ dense.covariance, rtol=1e-6, atol=1e-9
    )


def test_inverse_hessian_is_a_diagonal_and_a_product_or_not_positive():
    g = generator()
    diagonal, factors = torch.rand(D, generator=g) + 0.5, torch.randn(D, 4, generator=g)
    middle = torch.diag(torch.tensor([1.0, 0.5, -0.001, 2.0]))
    normal = FactoredNormal.of_inverse_hessian(torch.zeros(D), diagonal, factors, middle)
    expected = torch.diag(diagonal) + factors @ middle @ factors.T
    torch.testing.assert_close(normal.dense().covariance, expected)
    assert FactoredNormal.of_inverse_hessian(torch.zeros(D), diagonal, factors, -middle) is None


def iterated(precision: Tensor, mean: Tensor, sweeps: int) -> Tensor:
    """KL divergence of the normal after ten iterations from a standard normal."""
    q, g = FactoredNormal.diagonal(torch.zeros(D), torch.ones(D)), generator()
    for t in range(10):
        u = q.sample(64, g)
        q = matched(q, u, (mean - u) @ precision, rank=8, sweeps=sweeps if t < 5 else 0)
    exact = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    fitted = torch.distributions.MultivariateNormal(q.loc, q.dense().covariance)
    return torch.distributions.kl_divergence(fitted, exact)


@pytest.mark.parametrize("kind", ["stretched", "shrunk"])
def test_matching_scores_finds_a_diagonal_and_a_few_directions(kind):
    g = generator(2)
    diagonal = torch.diag(torch.rand(D, generator=g) * 3 + 0.05)
    directions = torch.randn(D, 2, generator=g)
    precision = diagonal + 100 * directions @ directions.T
    if kind == "stretched":
        precision = torch.linalg.inv(diagonal + directions @ directions.T)
    mean = torch.randn(D, generator=g)
    assert iterated(precision, mean, sweeps=2) < 0.1
    assert iterated(precision, mean, sweeps=0) > 0.5  # the scales are not found without sweeps


@pytest.fixture
def _few_values_are_many(monkeypatch):
    for module in (normal, pathfinder, automatic, moments):
        monkeypatch.setattr(module, "MAX_DENSE", 2)


@pytest.mark.usefixtures("_few_values_are_many")
@pytest.mark.parametrize("method", ["pathfinder", "batch_and_match", "auto"])
def test_factored_methods_find_a_normal_posterior(method):
    known = linear_normal()
    result = approximate(LogDensity(known.model, known.batch), method, generator())
    assert isinstance(result.normal, FactoredNormal)
    assert result.good, result.reasons
    sd = known.covariance.diagonal().sqrt()
    assert ((result.normal.loc - known.mean) / sd).abs().max() < 0.15
    assert ((result.normal.sd / sd).log().abs() < 0.25).all()


def test_guide_has_the_density_of_the_normal():
    q = example()

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))

    guide = GlobalLowRankNormal(model, rank=5)
    guide.set_normal(**vars(q))
    u = q.sample(3, generator())
    posterior = guide.get_posterior()
    torch.testing.assert_close(posterior.log_prob(u), q.log_prob(u))
    torch.manual_seed(0)
    draws = posterior.sample((4000,))
    assert ((draws.std(0) / q.sd - 1).abs() < 5 / 8000**0.5).all()
    assert ((draws.mean(0) - q.loc).abs() < 5 * q.sd / 4000**0.5).all()


def grouped(index: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()).to(y), 10.0))
    with pyro.plate("groups", 600):
        theta = pyro.sample("theta", dist.Normal(mu, 0.7))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(theta[index], 1.0), obs=y)


@pytest.mark.slow
def test_automatic_finds_the_means_of_600_groups():
    g, J, n = generator(), 600, 3
    index = torch.arange(J).repeat_interleave(n)
    y = 2 + 0.7 * torch.randn(J, generator=g)[index] + torch.randn(J * n, generator=g)
    precision = torch.zeros(J + 1, J + 1)
    precision[0, 0], precision[1:, 1:] = 0.01 + J / 0.49, torch.eye(J) * (1 / 0.49 + n)
    precision[0, 1:] = precision[1:, 0] = -1 / 0.49
    covariance = torch.linalg.inv(precision)
    mean = covariance @ torch.cat([torch.zeros(1), y.reshape(J, n).sum(1)])
    result = approximate(LogDensity(grouped, (index, y)), "auto", generator())
    assert result.good, result.reasons
    draws, sd = result.thinned(), covariance.diagonal().sqrt()
    assert ((draws.mean(0) - mean).abs() / sd).max() < 5 / 2000**0.5
    assert (draws.std(0) / sd - 1).abs().max() < 0.1
    assert result.k_hat < 0.7
