"""Particles: log-weights per particle and row, scales, masks, training."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal, Poisson, constraints
from pyro.infer import SVI
from pyro.poutine import mask, scale
from torch import Tensor

from ppl_lvm.estimators import LeaveOneOut
from ppl_lvm.particles import analyze_for_particles, draw_particles, log_weights
from ppl_lvm.programs.minibatch import ScaleDataPlate

X = torch.linspace(-1.0, 2.0, 6).reshape(3, 2)


@pytest.mark.parametrize("vectorize", [None, True, False])
def test_log_weights_are_per_particle_and_row(
    vectorize: bool | None, model: Any, guide: Any, particles: Any, expected_log_weights: Any
) -> None:
    p = particles(model, guide, X, vectorize_particles=vectorize)
    assert p.log_w.shape == (4, 3)
    assert torch.allclose(p.log_w, expected_log_weights(p, X), atol=1e-5)
    assert p.site_draws["z"].value.shape == (4, 3, 2)
    assert p.score is None
    assert log_weights(model, guide, X, num_particles=4).shape == (4, 3)


def test_one_particle_runs_without_particle_plate(
    model: Any, guide: Any, particles: Any, expected_log_weights: Any
) -> None:
    p = particles(model, guide, X, K=1)
    assert torch.allclose(p.log_w, expected_log_weights(p, X), atol=1e-5)


def test_analyzing_a_pair_preserves_the_random_state(model: Any, guide: Any) -> None:
    structure = analyze_for_particles(model, guide, (X,), {}, 4)
    pyro.set_rng_seed(7)
    analyze_for_particles(model, guide, (X,), {}, 4)
    after_a_check = draw_particles(model, guide, (X,), {}, structure, 4)
    pyro.set_rng_seed(7)
    without = draw_particles(model, guide, (X,), {}, structure, 4)
    assert torch.equal(after_a_check.log_w, without.log_w)


def test_minibatch_scale_is_outside_log_weights(
    model: Any, guide: Any, particles: Any, expected_log_weights: Any
) -> None:
    wrapped = ScaleDataPlate(30)
    p = particles(wrapped(model), wrapped(guide), X)
    assert p.scale == 10
    assert torch.allclose(p.log_w, expected_log_weights(p, X), atol=1e-5)
    assert p.energy_reason is None


def test_scale_data_plate_scales_as_context_manager(model: Any, guide: Any, particles: Any) -> None:
    with ScaleDataPlate(30):
        assert particles(model, guide, X).scale == 10


def test_all_particles_share_one_subsample() -> None:
    seen = []

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 20, subsample_size=3, dim=-1) as rows:
            seen.append(rows)
            pyro.sample("z", Normal(0.0, 1.0))

    def model(x: Tensor) -> None:
        with pyro.plate("data", 20, subsample_size=3, dim=-1) as rows:
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x[rows])

    structure = analyze_for_particles(
        model, guide, (torch.arange(20.0),), {}, 3, vectorize_particles=False
    )
    seen.clear()
    p = draw_particles(model, guide, (torch.arange(20.0),), {}, structure, 3)
    assert all(torch.equal(seen[0], rows) for rows in seen[1:])
    assert p.scale == pytest.approx(20 / 3)


def test_user_scales_and_masks_act_inside_log_weights(particles: Any) -> None:
    keep = torch.tensor([True, False, True])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), mask(mask=keep):
            with scale(scale=0.5):
                z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), mask(mask=keep), scale(scale=0.5):
            pyro.sample("z", Normal(x, 1.0))

    x = X[:, 0]
    wrapped = ScaleDataPlate(12)
    p = particles(wrapped(model), wrapped(guide), x)
    z, std = p.site_draws["z"].value, Normal(0.0, 1.0)
    expected = (0.5 * std.log_prob(z) + std.log_prob(x - z) - 0.5 * std.log_prob(z - x)) * keep
    assert torch.allclose(p.log_w, expected, atol=1e-5)
    assert torch.allclose(p.site_draws["z"].score, std.log_prob(z - x), atol=1e-5)


def test_svi_with_leave_one_out_finds_the_posterior() -> None:
    def learned(x: Tensor) -> None:
        probs = pyro.param("probs", torch.full((3,), 0.5), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(probs))

    def binary(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(0.5))
            pyro.sample("x", Normal(4 * z, 1.0), obs=x)

    x = torch.tensor([0.0, 4.0, 4.0])
    svi = SVI(binary, learned, pyro.optim.Adam({"lr": 0.1}), loss=LeaveOneOut(num_particles=4))
    losses = [svi.step(x) for _ in range(150)]
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    assert torch.equal(pyro.param("probs") > 0.9, torch.tensor([False, True, True]))


def test_value_outside_support_is_reported_with_its_position() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Poisson(z.exp()[..., None].expand(4, 3)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(0.0, 1.0).expand([len(x)]))

    x = torch.ones(4, 3)
    x[2, 1] = -3.0
    with pytest.raises(
        ValueError,
        match=r"'x' observes -3 at row 2, column 1, outside the support of Poisson \(1 invalid",
    ):
        log_weights(model, guide, x)
