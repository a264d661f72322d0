"""Recorded densities equal runs of the program."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from known_posteriors import linear_normal
from ppl_lvm.approximation.paths import follow_paths
from ppl_lvm.approximation.unconstrained import LogDensity

KNOWN = linear_normal()


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def loop(x):
    rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    level, levels = torch.zeros(()), []
    for t in range(len(x)):
        level = shares[0] * level + rate * x[t].abs().sqrt()
        levels.append(level)
    mean = pyro.deterministic("mean", torch.stack(levels))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def process(x):
    scale = pyro.sample("scale", dist.Normal(1.0, 1.0))
    covariance = scale * torch.eye(len(x)) + 0.1
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=x)


def centered_by_data(x):
    center = float(x.mean())  # Python reads data, which do not change
    z = pyro.sample("z", dist.Normal(center, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def branch(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    scale = 1.0 if z > 0.3 else 2.0  # Python reads the latent
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, scale), obs=x)


@pytest.mark.parametrize("model", [loop, process, centered_by_data])
def test_record_equals_runs_of_the_program(model):
    density = LogDensity(model, (torch.linspace(-1, 1, 5),))
    u = torch.rand(6, density.dim, generator=torch.Generator().manual_seed(0))
    expected = density._one_by_one(u)
    actual = [torch.cat(parts) for parts in zip(density(u[:1]), density(u[1:]), strict=True)]
    assert density._recording is not None
    torch.testing.assert_close(actual, list(expected), rtol=1e-9, atol=1e-9)
    for name, value in density.constrain(u).items():
        alone = torch.stack([density.trace(vector)[name]["value"] for vector in u])
        torch.testing.assert_close(value, alone)


def test_failed_factorization_has_density_zero_and_leaves_the_other_vectors():
    density = LogDensity(process, (torch.linspace(-1, 1, 5),))
    values, gradients = density(torch.tensor([[1.0], [-3.0], [2.0]]))
    assert density._recording is not None
    assert values.isfinite().tolist() == [True, False, True]
    assert (values[1], gradients[1].item()) == (-math.inf, 0)


def test_branch_on_a_latent_is_run_for_every_vector():
    density = LogDensity(branch, (torch.ones(3),))
    u = torch.tensor([[-1.0], [1.0]])
    values, _ = density(u)
    assert density._recording is None
    torch.testing.assert_close(values, torch.stack([density.log_density(v) for v in u]))


def test_paths_together_are_those_of_each_alone():
    density = LogDensity(KNOWN.model, KNOWN.batch)
    starts = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    for path, start in zip(follow_paths(density, starts), starts, strict=True):
        (alone,) = follow_paths(density, start.unsqueeze(0))
        torch.testing.assert_close(path.points, alone.points, rtol=1e-6, atol=1e-8)
        assert path.converged


def test_error_of_a_density_ends_all_paths():
    def failing(u):
        raise ArithmeticError("of the program")

    failing.dtype = torch.float64
    with pytest.raises(ArithmeticError, match="of the program"):
        follow_paths(failing, torch.zeros(3, 3))
