"""Test of vectorized particles against single runs."""

import math
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Dirichlet, LogNormal, Normal
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

from ppl_lvm.estimators import IWAE
from ppl_lvm.particles import analyze_for_particles, draw_particles

X = torch.linspace(-1.0, 2.0, 6).reshape(3, 2)


def picky(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", Normal(z[:, 0].unsqueeze(-1), 1.0).expand([len(x), 2]).to_event(1), obs=x)


def first_particle_for_all(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
        first = z[0] if z.dim() == 3 else z
        pyro.sample("x", Normal(first, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("program", [picky, first_particle_for_all])
def test_program_that_does_not_vectorize_runs_in_loop_with_one_warning(
    program: Any, guide: Any
) -> None:
    estimator = IWAE(num_particles=3)
    with pytest.warns(UserWarning, match="Particles run one by one") as record:
        estimator.loss(program, guide, X)
    assert len(record) == 1
    estimator.loss(program, guide, X)  # warnings are errors: a second one would fail
    if program is first_particle_for_all:
        assert "'x'" in str(record[0].message)


def test_explicit_vectorize_particles_skips_the_test(model: Any, guide: Any) -> None:
    structure = analyze_for_particles(
        first_particle_for_all, guide, (X,), {}, 3, vectorize_particles=True
    )
    assert structure.vectorized
    assert not analyze_for_particles(
        model, guide, (X,), {}, 3, vectorize_particles=False
    ).vectorized


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal])
def test_autoguides_vectorize(make: Any) -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", Dirichlet(torch.ones(2)))
        with pyro.plate("data", len(x), dim=-1):
            s = pyro.sample("s", LogNormal(0.0, 1.0))
            pyro.sample("x", Normal(w[..., 0], s), obs=x)

    auto = make(model)
    structure = analyze_for_particles(model, auto, (X[:, 0],), {}, 3)
    assert structure.vectorized
    together, alone = (
        draw_particles(model, auto, (X[:, 0],), {}, p, 2_000 if p.vectorized else 300)
        for p in (structure, analyze_for_particles(model, auto, (X[:, 0],), {}, 3, False))
    )
    error = alone.log_w.std() / math.sqrt(300) + together.log_w.std() / math.sqrt(2_000)
    assert (alone.log_w.mean() - together.log_w.mean()).abs() < 5 * error
    assert together.log_q_at_fixed_values.shape == (2_000, 1)
    assert torch.allclose(together.log_q_at_fixed_values, together.log_q, atol=1e-4)
