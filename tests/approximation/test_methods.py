"""Methods on posteriors with exact moments."""

from typing import get_args

import pyro
import pyro.distributions as dist
import pytest
import torch

from known_posteriors import flat_regression, linear_normal
from ppl_lvm.approximation import automatic
from ppl_lvm.approximation.automatic import find_posterior
from ppl_lvm.approximation.batch_and_match import updated
from ppl_lvm.approximation.chain_statistics import effective_size
from ppl_lvm.approximation.dadvi import dadvi
from ppl_lvm.approximation.hamiltonian import HamiltonianChains
from ppl_lvm.approximation.importance import probe, weigh
from ppl_lvm.approximation.laplace import laplace
from ppl_lvm.approximation.methods import NORMALS, approximate
from ppl_lvm.approximation.normal import DenseNormal
from ppl_lvm.approximation.pathfinder import inverse_hessians
from ppl_lvm.approximation.paths import AscentPath
from ppl_lvm.approximation.unconstrained import LogDensity, starting_points
from ppl_lvm.core.levels import Method

KNOWN = linear_normal()
EXACT = DenseNormal.of_covariance(KNOWN.mean, KNOWN.covariance)


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def target():
    return LogDensity(KNOWN.model, KNOWN.batch)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_laplace_is_exact_for_a_normal_posterior(target):
    normal, evidence = laplace(target, torch.zeros(3), torch.ones(3))
    torch.testing.assert_close(normal.loc, KNOWN.mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(normal.covariance, KNOWN.covariance, rtol=1e-5, atol=1e-10)
    assert float(evidence) == pytest.approx(KNOWN.log_evidence, abs=1e-5)


def test_batch_and_match_is_exact_after_one_iteration_in_the_limit(target):
    start = DenseNormal.of_covariance(KNOWN.mean + 1, torch.eye(3))
    z = start.sample(16, generator())
    q = updated(start, z, target(z)[1], weight=1e12)
    torch.testing.assert_close(q.loc, KNOWN.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(q.covariance, KNOWN.covariance, rtol=1e-3, atol=1e-8)


def test_batch_and_match_with_a_finite_weight_stays_nearer_to_its_start(target):
    start = DenseNormal.of_covariance(KNOWN.mean + 1, torch.eye(3))
    z = start.sample(16, generator())
    near = updated(start, z, target(z)[1], weight=0.01)
    assert (near.loc - start.loc).norm() < (EXACT.loc - start.loc).norm() * 0.99


def test_dadvi_linear_response_is_exact_for_a_normal_posterior(target):
    start = DenseNormal.of_covariance(KNOWN.mean + 0.5, torch.eye(3))
    result = dadvi(target, start, generator())
    torch.testing.assert_close(result.loc, KNOWN.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.normal.covariance, KNOWN.covariance, rtol=1e-3, atol=1e-8)
    # The mean field has the conditional variances, 1 / Λ_dd, up to the M draws' second moments.
    conditional = 1 / torch.linalg.inv(KNOWN.covariance).diagonal()
    assert ((result.scale.square() / conditional).log().abs() < 0.9).all()


def test_pathfinder_inverse_hessian_is_exact_after_conjugate_steps():
    precision = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 0.2]])
    directions = torch.linalg.eigh(precision).eigenvectors.T
    points = torch.cat([torch.ones(1, 3), torch.ones(1, 3) + directions.cumsum(0)])
    gradients = -points @ precision  # of −½ uᵀ Λ u
    path = AscentPath(points, -0.5 * (points @ precision * points).sum(1), gradients, True)
    normal = list(inverse_hessians(path))[-1].dense()
    torch.testing.assert_close(normal.covariance, torch.linalg.inv(precision))
    torch.testing.assert_close(normal.loc, torch.zeros(3), rtol=0, atol=1e-10)


def test_hamiltonian_chains_have_the_moments_of_the_target(target):
    wrong = DenseNormal.of_covariance(
        KNOWN.mean + 0.3 * KNOWN.covariance.diagonal().sqrt(), 2 * KNOWN.covariance
    )
    chains = HamiltonianChains(target, wrong, wrong.sample(32, generator()), generator(1))
    draws = chains.run(100, warmup=30).draws.transpose(0, 1)
    ess = torch.from_numpy(effective_size(draws))
    flat, sd = draws.flatten(0, 1), KNOWN.covariance.diagonal().sqrt()
    assert ((flat.mean(0) - KNOWN.mean).abs() < 5 * sd / ess.sqrt()).all()
    assert ((flat.std(0) / sd - 1).abs() < 5 / (2 * ess).sqrt()).all()


def test_options_list_the_methods():
    assert get_args(Method) == ("auto", "svi", *NORMALS)


NAMES = ["auto", *(pytest.param(name, marks=pytest.mark.slow) for name in NORMALS)]


@pytest.mark.parametrize("method", NAMES)
def test_method_finds_a_normal_posterior_and_calls_it_good(target, method):
    result = approximate(target, method, generator())
    sd = KNOWN.covariance.diagonal().sqrt()
    assert ((result.normal.loc - KNOWN.mean) / sd).abs().max() < 0.15
    assert ((result.normal.covariance.diagonal().sqrt() / sd).log().abs() < 0.25).all()
    assert result.log_evidence == pytest.approx(KNOWN.log_evidence, abs=0.05)
    assert result.good, result.reasons


@pytest.mark.parametrize(
    ("loc", "factor"), [(0.0, 0.4), (0.0, 2.5), (1.0, 1.0)], ids=["narrow", "wide", "shifted"]
)
def test_probe_finds_a_wrong_normal(target, loc, factor):
    sd = KNOWN.covariance.diagonal().sqrt()
    wrong = DenseNormal(KNOWN.mean + loc * sd, factor * EXACT.scale_tril)
    weighted = weigh(target, wrong, generator())
    weighted.k_hat = 1.0  # as where weights cannot correct it
    assert probe(target, weighted, generator())
    right = weigh(target, EXACT, generator())
    assert not probe(target, right, generator())


@pytest.mark.slow
def test_automatic_finds_the_t_posterior_of_a_regression_with_flat_priors():
    known = flat_regression()
    result = find_posterior(LogDensity(known.model, known.batch), generator())
    draws, sd = result.chains.flatten(0, 1)[:, :2], known.covariance.diagonal().sqrt()
    assert result.good, result.reasons
    assert ((draws.mean(0) - known.mean).abs() / sd).max() < 5 / 2000**0.5
    assert (draws.std(0) / sd - 1).abs().max() < 0.1


def two_modes(x):
    z = pyro.sample("z", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z**2, 1.0), obs=x)


@pytest.mark.slow
def test_automatic_names_two_modes(monkeypatch):
    monkeypatch.setattr(automatic, "ROUNDS", 1)
    result = find_posterior(LogDensity(two_modes, (torch.full((5,), 4.0),)), generator())
    assert not result.good
    assert "2 modes have the shares 0.5" in result.reasons[0]


@pytest.mark.slow
def test_automatic_does_not_call_an_improper_posterior_good(monkeypatch):
    monkeypatch.setattr(automatic, "ROUNDS", 2)
    known = flat_regression()
    X, y = known.batch
    twice = torch.cat([X, X[:, 1:]], 1)  # two equal columns: only their sum is identified
    result = find_posterior(LogDensity(known.model, (twice, y)), generator())
    assert not result.good


def nowhere(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal((-1 - z**2).sqrt(), 1.0), obs=x)


def test_starting_points_name_the_sites_of_a_density_that_is_nowhere_finite():
    with pytest.raises(ValueError, match=r"not finite at any of 400 .* coordinates of z\."):
        starting_points(LogDensity(nowhere, (torch.ones(3),)), 4, generator())


def centered_schools(y, sd):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sd), obs=y)


@pytest.mark.slow
def test_centered_hierarchy_is_solved_in_noncentered_coordinates():
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sd = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    density = LogDensity(centered_schools, (y, sd))
    result = find_posterior(density, generator())
    assert result.good, result.reasons
    assert result.noncentered == ["theta"]
    values = density.constrain(result.thinned())
    # Means and standard deviations of posteriordb's eight_schools_noncentered.
    for draws, mean, spread in ((values["mu"], 4.40, 3.31), (values["tau"], 3.60, 3.19)):
        assert float(draws.mean()) == pytest.approx(mean, abs=0.1 * spread)
        assert float(draws.std()) == pytest.approx(spread, rel=0.1)
