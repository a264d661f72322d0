"""Particles: tables per site, particle and datum; where the datum is; what is summed out."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import (
    Bernoulli,
    Categorical,
    Dirichlet,
    LogNormal,
    Normal,
    constraints,
)
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.poutine import mask, scale
from torch import Tensor

from ppl_lvm.estimators import ELBO, IWAE, LeaveOneOut
from ppl_lvm.particles import Particles, draw_particles, log_weights, plan_pair
from ppl_lvm.subsample import Subsample

X = torch.linspace(-1.0, 2.0, 6).reshape(3, 2)
W = torch.tensor([[0.5, -1.0], [1.5, 0.3]])


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", Normal(z @ W, 1.0).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(x + loc, 0.5).to_event(1))


def particles(model: Any, guide: Any, *args: Any, K: int = 4, **options: Any) -> Particles:
    plan = plan_pair(model, guide, args, {}, K, **options)
    return draw_particles(model, guide, args, {}, plan, K)


def by_hand(p: Particles) -> Tensor:
    z = p.draws["z"].value
    log_p = Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(z @ W, 1.0).log_prob(X).sum(-1)
    return log_p - Normal(X + 0.2, 0.5).log_prob(z).sum(-1)


@pytest.mark.parametrize("vectorize", [None, True, False])
def test_log_weights_are_per_particle_and_datum(vectorize: bool | None) -> None:
    p = particles(model, guide, X, vectorize_particles=vectorize)
    assert p.log_w.shape == (4, 3)
    assert torch.allclose(p.log_w, by_hand(p), atol=1e-5)
    assert p.draws["z"].value.shape == (4, 3, 2)
    assert p.score is None
    assert log_weights(model, guide, X, num_particles=4).shape == (4, 3)


def test_one_particle_needs_no_particle_plate() -> None:
    p = particles(model, guide, X, K=1)
    assert torch.allclose(p.log_w, by_hand(p), atol=1e-5)


def test_finding_the_structure_leaves_the_random_numbers_alone() -> None:
    plan = plan_pair(model, guide, (X,), {}, 4)
    pyro.set_rng_seed(7)
    plan_pair(model, guide, (X,), {}, 4)
    after_a_check = draw_particles(model, guide, (X,), {}, plan, 4)
    pyro.set_rng_seed(7)
    without = draw_particles(model, guide, (X,), {}, plan, 4)
    assert torch.equal(after_a_check.log_w, without.log_w)


def test_a_mini_batch_is_scaled_outside() -> None:
    wrapped = Subsample(30)
    p = particles(wrapped(model), wrapped(guide), X)
    assert p.scale == 10
    assert torch.allclose(p.log_w, by_hand(p), atol=1e-5)
    assert p.energy is None


def test_the_handler_as_a_context_scales_too() -> None:
    with Subsample(30):
        assert particles(model, guide, X).scale == 10


def test_all_particles_see_one_subsample() -> None:
    seen = []

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 20, subsample_size=3, dim=-1) as rows:
            seen.append(rows)
            pyro.sample("z", Normal(0.0, 1.0))

    def model(x: Tensor) -> None:
        with pyro.plate("data", 20, subsample_size=3, dim=-1) as rows:
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x[rows])

    plan = plan_pair(model, guide, (torch.arange(20.0),), {}, 3, vectorize_particles=False)
    seen.clear()
    p = draw_particles(model, guide, (torch.arange(20.0),), {}, plan, 3)
    assert all(torch.equal(seen[0], rows) for rows in seen[1:])
    assert p.scale == pytest.approx(20 / 3)


# Which plate is the datum


def test_a_global_latent_makes_the_weight_joint() -> None:
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
    m, z = p.draws["m"].value.reshape(4, 1), p.draws["z"].value
    std = Normal(0.0, 1.0)
    expected = std.log_prob(z - m).sum(1) + std.log_prob(x - z).sum(1) - std.log_prob(z - x).sum(1)
    assert p.log_w.shape == (4, 1)
    assert torch.allclose(p.log_w[:, 0], expected, atol=1e-5)
    plan = plan_pair(model, guide, (x,), {}, 4)
    assert plan.joint_because == "latent site 'm' stands outside plate 'data'"
    wrapped = Subsample(30)
    p = particles(wrapped(model), wrapped(guide), x)
    assert p.energy is not None
    assert "'z'" in p.energy
    assert p.scale == 1.0


def test_one_plate_of_any_name_is_the_datum_and_siblings_are_joint() -> None:
    def one() -> None:
        with pyro.plate("rows", 3, dim=-2):
            z = pyro.sample("z", Normal(torch.zeros(3, 1), 1.0))
            with pyro.plate("columns", 2, dim=-1):
                pyro.sample("x", Normal(z, 1.0), obs=X)

    def q_one() -> None:
        with pyro.plate("rows", 3, dim=-2):
            pyro.sample("z", Normal(torch.zeros(3, 1), 1.0))

    assert plan_pair(one, q_one, (), {}, 2).data_plate == "rows"
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

    plan = plan_pair(two, q_two, (), {}, 2)
    assert plan.data_plate is None
    assert log_weights(two, q_two, num_particles=2, plan=plan).shape == (2, 1)


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


def test_what_no_draw_changes_is_an_offset() -> None:
    p = particles(with_penalty(False), scalar_guide, X[:, 0])
    assert p.log_w.shape == (4, 3)
    assert float(p.offset) == -2.5


def test_a_site_outside_that_depends_on_the_draws_makes_the_weight_joint() -> None:
    plan = plan_pair(with_penalty(True), scalar_guide, (X[:, 0],), {}, 4, False)
    assert plan.data_plate is None
    assert plan.joint_because is not None
    assert "'penalty'" in plan.joint_because


def test_a_point_estimated_global_is_an_offset_too() -> None:
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
    value = p.draws["s"].value.reshape(-1)[0]
    assert torch.allclose(torch.as_tensor(p.offset), LogNormal(0.0, 1.0).log_prob(value))


# Enumeration


@config_enumerate
def decoders(x: Tensor) -> None:
    heads = torch.stack([W, -W, W.T])
    with pyro.plate("data", len(x), dim=-1):
        d = pyro.sample("d", Categorical(torch.tensor([0.2, 0.3, 0.5])))
        z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
        loc = (z.unsqueeze(-2) @ heads[d]).squeeze(-2)
        pyro.sample("x", Normal(loc, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("vectorize", [True, False])
def test_an_enumerated_site_is_summed_out_inside_the_weights(vectorize: bool) -> None:
    p = particles(decoders, guide, X, vectorize_particles=vectorize)
    z = p.draws["z"].value
    heads = torch.stack([W, -W, W.T])
    log_x = Normal(torch.einsum("kbd,cdp->ckbp", z, heads), 1.0).log_prob(X).sum(-1)
    mixed = (log_x + torch.tensor([0.2, 0.3, 0.5]).log().reshape(3, 1, 1)).logsumexp(0)
    expected = mixed + (Normal(0.0, 1.0).log_prob(z) - Normal(X + 0.2, 0.5).log_prob(z)).sum(-1)
    assert p.log_w.shape == (4, 3)
    assert torch.allclose(p.log_w, expected, atol=1e-5)


@config_enumerate
def chain(y: Tensor) -> None:
    table = pyro.param(
        "table", torch.tensor([[0.7, 0.3], [0.2, 0.8]]), constraint=constraints.simplex
    )
    with pyro.plate("data", len(y), dim=-1):
        c = torch.zeros((), dtype=torch.long)
        for t in pyro.markov(range(y.shape[1])):
            c = pyro.sample(f"c{t}", Categorical(table[c]))
            pyro.sample(f"y{t}", Normal(c.float(), 1.0), obs=y[:, t])


def nothing(y: Tensor) -> None:
    pass


def test_a_markov_chain_without_a_guide_gives_the_exact_evidence() -> None:
    y = torch.randn(4, 5)
    table = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    log_alpha = torch.full((4, 2), -math.inf)
    log_alpha[:, 0] = 0.0
    for t in range(5):
        moved = (log_alpha.unsqueeze(-1) + table.log()).logsumexp(1)
        log_alpha = moved + Normal(torch.arange(2.0), 1.0).log_prob(y[:, t : t + 1])
    expected = log_alpha.logsumexp(1)
    for K in (1, 3):
        log_w = log_weights(chain, nothing, y, num_particles=K)
        assert log_w.shape == (K, 4)
        assert torch.allclose(log_w, expected.expand(K, 4), atol=1e-5)
    with Subsample(40):
        assert ELBO().loss(chain, nothing, y) == pytest.approx(
            -10 * float(expected.sum()), rel=1e-5
        )


def test_enumeration_agrees_with_pyro_on_a_chain_in_an_inner_plate() -> None:
    @config_enumerate
    def model(y: Tensor) -> None:
        weights = pyro.param("w", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
        with pyro.plate("data", 3, dim=-2):
            a = pyro.sample("a", Categorical(weights))
            with pyro.plate("features", 2, dim=-1):
                b = pyro.sample("b", Bernoulli(torch.tensor([0.2, 0.6])[a]))
                pyro.sample("y", Normal(b + a, 1.0), obs=y)

    expected = TraceEnum_ELBO(max_plate_nesting=2).loss(model, nothing, X)
    assert ELBO().loss(model, nothing, X) == pytest.approx(expected, rel=1e-5)


def test_a_global_enumerated_site_cannot_carry_a_subsampling_scale() -> None:
    @config_enumerate
    def model(x: Tensor) -> None:
        c = pyro.sample("c", Bernoulli(0.3))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(c, 1.0), obs=x)

    x = X[:, 0]
    per_c = [Normal(c, 1.0).log_prob(x).sum() for c in (0.0, 1.0)]
    expected = torch.logaddexp(per_c[0] + math.log(0.7), per_c[1] + math.log(0.3))
    assert float(log_weights(model, nothing, x)) == pytest.approx(float(expected), rel=1e-5)
    with Subsample(30), pytest.raises(ValueError, match=r"'c'.*scaled by"):
        log_weights(model, nothing, x)


# Tempering, masks


def test_scales_and_masks_of_the_user_act_inside_the_weight() -> None:
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
    wrapped = Subsample(12)
    p = particles(wrapped(model), wrapped(guide), x)
    z, std = p.draws["z"].value, Normal(0.0, 1.0)
    expected = (0.5 * std.log_prob(z) + std.log_prob(x - z) - 0.5 * std.log_prob(z - x)) * keep
    assert torch.allclose(p.log_w, expected, atol=1e-5)
    assert torch.allclose(p.draws["z"].score, std.log_prob(z - x), atol=1e-5)


# Vectorised particles: tried, and refused where they would score something else


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
def test_a_program_that_does_not_vectorise_runs_in_a_loop_with_one_warning(program: Any) -> None:
    estimator = IWAE(num_particles=3)
    with pytest.warns(UserWarning, match="Particles run one by one") as record:
        estimator.loss(program, guide, X)
    assert len(record) == 1
    estimator.loss(program, guide, X)  # warnings are errors: a second one would fail
    if program is first_particle_for_all:
        assert "'x'" in str(record[0].message)


def test_an_explicit_choice_is_obeyed_without_a_check() -> None:
    plan = plan_pair(first_particle_for_all, guide, (X,), {}, 3, vectorize_particles=True)
    assert plan.vectorized
    assert not plan_pair(model, guide, (X,), {}, 3, vectorize_particles=False).vectorized


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal])
def test_automatic_guides_vectorise(make: Any) -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", Dirichlet(torch.ones(2)))
        with pyro.plate("data", len(x), dim=-1):
            s = pyro.sample("s", LogNormal(0.0, 1.0))
            pyro.sample("x", Normal(w[..., 0], s), obs=x)

    auto = make(model)
    plan = plan_pair(model, auto, (X[:, 0],), {}, 3)
    assert plan.vectorized
    together, alone = (
        draw_particles(model, auto, (X[:, 0],), {}, p, 2_000 if p.vectorized else 300)
        for p in (plan, plan_pair(model, auto, (X[:, 0],), {}, 3, False))
    )
    error = alone.log_w.std() / math.sqrt(300) + together.log_w.std() / math.sqrt(2_000)
    assert (alone.log_w.mean() - together.log_w.mean()).abs() < 5 * error
    assert together.log_q_held.shape == (2_000, 1)
    assert torch.allclose(together.log_q_held, together.log_q, atol=1e-4)


# What does not fit is refused by name


def expect(match: str, model: Any, guide: Any) -> None:
    with pytest.raises(ValueError, match=match):
        plan_pair(model, guide, (X,), {}, 2)


def test_pairs_that_do_not_fit_are_refused_by_name() -> None:
    def other(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("w", Normal(torch.zeros(2), 1.0).to_event(1))

    def bare(x: Tensor) -> None:
        pyro.sample("z", Normal(x, 1.0).to_event(2))

    def no_plate(x: Tensor) -> None:
        pyro.sample("z", Normal(x, 1.0).to_event(1))

    def undeclared(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", Normal(torch.zeros(len(x), 2), 1.0))

    def marked(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(0.5), infer={"enumerate": "parallel"})

    def discrete(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(0.5))
            pyro.sample("x", Normal(z, 1.0), obs=x[:, 0])

    expect(r"samples \['w'\] but the model's latents are \['z'\]: missing \['z'\]", model, other)
    expect(r"missing \['z'\].*enumerate", discrete, nothing)
    expect("'z' has event dimension 1 in the model and 2", model, bare)
    expect("'z' has batch shape .* no plate declares", model, no_plate)
    expect("'z' has batch shape .* no plate declares its dimension -1", undeclared, undeclared)
    expect("'z' is marked for enumeration", discrete, marked)


def test_a_latent_inside_the_plate_in_the_model_only_is_refused() -> None:
    def one_for_all(x: Tensor) -> None:
        pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))

    expect("'z' is inside plate 'data' in the model but not in the guide", model, one_for_all)


def test_training_with_svi_finds_the_posterior() -> None:
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
