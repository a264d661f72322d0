"""Dimension of the rows in draws of a site."""

import pyro
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor

from ppl_lvm.diagnostics.pareto_k import pareto_k
from ppl_lvm.particles import analyze_for_particles, draw_particles
from ppl_lvm.particles.layout import as_particles, by_row

N = 4
X = torch.arange(16.0).reshape(N, N) / 4 - 2


def features_left(x: Tensor) -> None:
    """z_mn ~ N(0, 1), x_nm ~ N(z_mn, 1), features at dimension -2."""
    with pyro.plate("features", N, dim=-2), pyro.plate("data", N, dim=-1):
        z = pyro.sample("z", Normal(0.0, 1.0))
        pyro.sample("x", Normal(z, 1.0), obs=x.T)


def features_right(x: Tensor) -> None:
    with pyro.plate("data", N, dim=-2), pyro.plate("features", N, dim=-1):
        z = pyro.sample("z", Normal(0.0, 1.0))
        pyro.sample("x", Normal(z, 1.0), obs=x)


def event_of_rows(x: Tensor) -> None:
    """As many columns as rows."""
    with pyro.plate("data", N, dim=-1):
        z = pyro.sample("z", Normal(torch.zeros(N), 1.0).to_event(1))
        pyro.sample("x", Normal(z, 1.0).to_event(1), obs=x)


def left_guide(x: Tensor) -> None:
    with pyro.plate("features", N, dim=-2), pyro.plate("data", N, dim=-1):
        pyro.sample("z", Normal(x.T / 2, 0.5**0.5))


def right_guide(x: Tensor) -> None:
    with pyro.plate("data", N, dim=-2), pyro.plate("features", N, dim=-1):
        pyro.sample("z", Normal(x / 2, 0.5**0.5))


def event_guide(x: Tensor) -> None:
    with pyro.plate("data", N, dim=-1):
        pyro.sample("z", Normal(x / 2, 0.5**0.5).to_event(1))


PAIRS = {
    "features left": (features_left, left_guide, -1),
    "features right": (features_right, right_guide, -2),
    "event": (event_of_rows, event_guide, -2),
}


@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize("particles", [1, N, 9])
def test_rows_are_at_the_dimension_of_their_plate_where_sizes_are_equal(
    case: str, particles: int
) -> None:
    model, guide, axis = PAIRS[case]
    structure = analyze_for_particles(model, guide, (X,), {}, particles)
    draws = draw_particles(model, guide, (X,), {}, structure, particles).site_draws["z"]
    assert draws.row_axis == axis
    z = draws.value if axis != -1 else draws.value.mT
    assert torch.equal(by_row(draws.value, axis), z.reshape(particles, N, N))
    first = as_particles(draws.value[:1], axis, slice(0, 2))  # rows 0 and 1 at every row
    for k in range(2):
        assert torch.equal(by_row(first, axis)[k], z[0, k].expand(N, N))


@pytest.mark.parametrize("case", PAIRS)
def test_corrected_moments_are_those_of_each_row_where_sizes_are_equal(case: str) -> None:
    model, guide, _ = PAIRS[case]
    moments = pareto_k(model, guide, X, num_draws=2000).moments["z"]
    error = 5 * (0.5 / 2000) ** 0.5
    assert torch.allclose(torch.as_tensor(moments.q_mean).float(), X / 2, atol=error)
    assert torch.allclose(torch.as_tensor(moments.mean).float(), X / 2, atol=error)
