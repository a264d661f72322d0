"""Pair structure: data plate, offsets, rejected pairs."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Categorical, Dirichlet, LogNormal, Normal
from pyro.infer.autoguide import AutoDelta
from torch import Tensor

from ppl_lvm.particles import analyze_for_particles, log_weights
from ppl_lvm.particles.structure import analyze_pair
from ppl_lvm.programs.minibatch import ScaleDataPlate

X = torch.linspace(-1.0, 2.0, 6).reshape(3, 2)


def test_global_latent_makes_log_weight_joint(particles: Any) -> None:
    def model(x: Tensor) -> None:
        m = pyro.sample("m", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(m, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("m", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(x, 1.0))

    x = X[:, 0]
    p = particles(model, guide, x)
    m, z = p.site_draws["m"].value.reshape(4, 1), p.site_draws["z"].value
    std = Normal(0.0, 1.0)
    expected = std.log_prob(z - m).sum(1) + std.log_prob(x - z).sum(1) - std.log_prob(z - x).sum(1)
    assert p.log_w.shape == (4, 1)
    assert torch.allclose(p.log_w[:, 0], expected, atol=1e-5)
    structure = analyze_for_particles(model, guide, (x,), {}, 4)
    assert structure.joint_reason == "latent site 'm' is outside plate 'data'"
    wrapped = ScaleDataPlate(30)
    p = particles(wrapped(model), wrapped(guide), x)
    assert p.energy_reason is not None
    assert "'z'" in p.energy_reason
    assert p.scale == 1.0


def test_single_outer_plate_is_data_plate_and_sibling_plates_are_joint() -> None:
    def one() -> None:
        with pyro.plate("rows", 3, dim=-2):
            z = pyro.sample("z", Normal(torch.zeros(3, 1), 1.0))
            with pyro.plate("columns", 2, dim=-1):
                pyro.sample("x", Normal(z, 1.0), obs=X)

    def q_one() -> None:
        with pyro.plate("rows", 3, dim=-2):
            pyro.sample("z", Normal(torch.zeros(3, 1), 1.0))

    assert analyze_for_particles(one, q_one, (), {}, 2).data_plate == {"rows"}
    assert log_weights(one, q_one, num_particles=2).shape == (2, 3)

    def two(observe: bool = True) -> None:
        rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1)
        with rows:
            a = pyro.sample("a", Normal(torch.zeros(3, 1), 1.0))
        with columns:
            b = pyro.sample("b", Normal(torch.zeros(2), 1.0))
        if observe:
            with rows, columns:
                pyro.sample("x", Normal(a + b, 1.0), obs=X)

    def q_two() -> None:
        two(observe=False)

    structure = analyze_for_particles(two, q_two, (), {}, 2)
    assert structure.data_plate is None
    assert log_weights(two, q_two, num_particles=2, structure=structure).shape == (2, 1)


def with_penalty(depends: bool) -> Callable[[Tensor], None]:
    def run(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)
        pyro.factor("penalty", -z.square().sum(-1) if depends else torch.tensor(-2.5))

    return run


def scalar_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(x, 1.0))


def test_constant_site_outside_data_plate_is_an_offset(particles: Any) -> None:
    p = particles(with_penalty(False), scalar_guide, X[:, 0])
    assert p.log_w.shape == (4, 3)
    assert float(p.offset) == -2.5


def test_varying_site_outside_data_plate_makes_log_weight_joint() -> None:
    structure = analyze_for_particles(with_penalty(True), scalar_guide, (X[:, 0],), {}, 4, False)
    assert structure.data_plate is None
    assert structure.joint_reason is not None
    assert "'penalty'" in structure.joint_reason


def test_deterministic_sites_do_not_affect_structure(particles: Any) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            y = pyro.deterministic("y", 2 * z)
            pyro.sample("x", Normal(y, 1.0), obs=x)
        pyro.deterministic("mean", z.mean(-1))

    def guide(x: Tensor) -> None:
        scalar_guide(x)
        pyro.deterministic("rows", torch.tensor(len(x)))

    for K in (1, 4):
        p = particles(model, guide, X[:, 0], K=K)
        z, std = p.site_draws["z"].value, Normal(0.0, 1.0)
        x = X[:, 0]
        expected = std.log_prob(z) + std.log_prob(x - 2 * z) - std.log_prob(z - x)
        assert torch.allclose(p.log_w, expected, atol=1e-5)
        assert list(p.site_draws) == ["z"]


def test_point_estimated_global_is_an_offset(particles: Any) -> None:
    def model(x: Tensor) -> None:
        s = pyro.sample("s", LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, s), obs=x)

    hidden = pyro.poutine.block(model, expose=["s"])
    point = AutoDelta(hidden)

    def guide(x: Tensor) -> None:
        point(x)
        scalar_guide(x)

    p = particles(model, guide, X[:, 0])
    assert p.log_w.shape == (4, 3)
    value = p.site_draws["s"].value.reshape(-1)[0]
    assert torch.allclose(torch.as_tensor(p.offset), LogNormal(0.0, 1.0).log_prob(value))


def assert_rejected(match: str, model: Any, guide: Any) -> None:
    with pytest.raises(ValueError, match=match):
        analyze_for_particles(model, guide, (X,), {}, 2)


def test_mismatched_pairs_are_rejected_with_the_site(model: Any) -> None:
    def other(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("w", Normal(torch.zeros(2), 1.0).to_event(1))

    def bare(x: Tensor) -> None:
        pyro.sample("z", Normal(x, 1.0).to_event(2))

    def no_plate(x: Tensor) -> None:
        pyro.sample("z", Normal(x, 1.0).to_event(1))

    def undeclared(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(torch.zeros(2, len(x)), 1.0))

    def discrete(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(0.5))
            pyro.sample("x", Normal(z, 1.0), obs=x[:, 0])

    assert_rejected(
        r"samples \['w'\] but the model's latents are \['z'\]: missing \['z'\]", model, other
    )
    assert_rejected(r"missing \['z'\].*enumerate", discrete, lambda x: None)
    assert_rejected("'z' has event dimension 1 in the model and 2", model, bare)
    assert_rejected("'z' has batch shape .* no plate declares", model, no_plate)
    assert_rejected(
        "'z' has batch shape .* no plate declares its dimension -2", undeclared, undeclared
    )


def test_latent_inside_plate_in_model_only_is_rejected(model: Any) -> None:
    def one_for_all(x: Tensor) -> None:
        pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))

    assert_rejected(
        "'z' is inside plate 'data' in the model but not in the guide", model, one_for_all
    )


def test_branch_on_a_draw_leaves_earlier_sites_independent() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", Dirichlet(torch.ones(2)))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Categorical(w), infer={"enumerate": "parallel"})
            if bool((z >= 0).all()):  # reads the draws, after w
                pyro.sample("x", Normal(2.0 * z, 1.0), obs=x)

    x = torch.tensor([0.0, 2.0, 2.1])
    guide = AutoDelta(pyro.poutine.block(model, hide=["z"]))
    structure = analyze_pair(model, guide, (x,), {})
    assert structure.enumerated
