"""Costs of score-function terms."""

from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from torch import Tensor

from ppl_lvm.estimators import VIMCO, DecayingAverageBaseline, LeaveOneOut, NeuralBaseline
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles import Particles, analyze_for_particles, draw_particles, score_terms
from ppl_lvm.particles.tracing import plate_frames
from ppl_lvm.testing.exact_programs import (
    EnumerableProgram,
    LocalBeforeGlobalProgram,
    NestedPlatesProgram,
)
from ppl_lvm.testing.expectations import (
    Case,
    Expectation,
    double_precision,
    enumerate_cases,
    enumerate_expectation,
)


class SiblingPlatesProgram(EnumerableProgram):
    """Global draws in a plate, rows in another of the same dimension and size, d_n summed out."""

    rows_are_arguments = False

    def model(self, x: Tensor) -> None:
        theta = self.p["theta"]
        with pyro.plate("components", 2, dim=-1):
            t = pyro.sample("t", Bernoulli(logits=theta[0, :2]))
        first, second = t[..., :1], t[..., 1:]
        with pyro.plate("data", 6, subsample=torch.arange(2), dim=-1):
            d = pyro.sample(
                "d", Bernoulli(logits=theta[1, 1] * second), infer={"enumerate": "parallel"}
            )
            loc = theta[2, 1] * second * d + theta[2, 2] * first
            pyro.sample("x", Normal(loc, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        phi = self.p["phi"]
        with pyro.plate("components", 2, dim=-1):
            pyro.sample("t", Bernoulli(logits=phi[0, :2]))

    def cases(self) -> Iterator[Case]:
        return enumerate_cases(self.num_particles, t=(2, (2,)))


def expectation(program: Any, estimator: Estimator) -> Expectation:
    with double_precision():
        instance = program(estimator.num_particles)
        pair = (instance.model, instance.guide)
        return enumerate_expectation(
            estimator.double(), *pair, (instance.x,), instance.parameters(), instance.cases()
        )


def is_exact(result: Expectation) -> bool:
    return torch.allclose(result.gradient, result.target, rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:VIMCO is no bound")
@pytest.mark.parametrize("make", [LeaveOneOut, VIMCO, DecayingAverageBaseline])
def test_gradient_is_exact_with_global_draws_in_a_sibling_plate(make: Any) -> None:
    assert is_exact(expectation(SiblingPlatesProgram, make(num_particles=2)))


def test_gradient_is_wrong_if_plates_are_matched_by_dimension(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def by_dimension(value: Tensor, plates: dict[str, int], target: dict[str, int]) -> Tensor:
        dims = [dim for dim in plates.values() if dim not in target.values()]
        return value.sum(dims, keepdim=True) if dims else value

    monkeypatch.setattr(score_terms, "_sum_to", by_dimension)
    assert not is_exact(expectation(SiblingPlatesProgram, LeaveOneOut(2)))


def test_gradient_is_wrong_if_a_global_draw_after_the_rows_is_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert is_exact(expectation(LocalBeforeGlobalProgram, LeaveOneOut(2)))

    def never(name: str, guide: Any, position: Any, unaffected: Any) -> dict[str, tuple[int, int]]:
        return {f.name: (f.dim, len(guide)) for f in plate_frames(guide[name])}

    monkeypatch.setattr(score_terms, "_shared_until", never)
    assert not is_exact(expectation(LocalBeforeGlobalProgram, LeaveOneOut(2)))


class UnrelatedGlobalProgram(LocalBeforeGlobalProgram):
    """The global draw after the rows does not depend on them."""

    def guide(self, x: Tensor) -> None:
        phi = self.p["phi"]
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=phi[0, 0] + phi[0, 1] * x))
        pyro.sample("g", Bernoulli(logits=phi[1, 0] - 0.2))


@pytest.mark.parametrize("make", [LeaveOneOut, DecayingAverageBaseline])
def test_gradient_is_exact_without_the_terms_of_unrelated_draws(make: Any) -> None:
    assert is_exact(expectation(UnrelatedGlobalProgram, make(num_particles=2)))


def draws(program: Any, num_particles: int) -> Particles:
    args = (program.x,)
    structure = analyze_for_particles(program.model, program.guide, args, {}, num_particles)
    return draw_particles(program.model, program.guide, args, {}, structure, num_particles)


class RowsGivenGlobal(EnumerableProgram):
    """g, then a bit per row: row costs have the terms of the row only."""

    def model(self, x: Tensor) -> None:
        g = pyro.sample("g", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=self.p["theta"][0, 0] + g))
            pyro.sample("x", Normal(z + g, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("g", Normal(self.p["phi"][0, 0], 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=self.p["phi"][0, 1] * x))


class RowsBeforeUnrelatedGlobal(RowsGivenGlobal):
    """The guide draws g after the rows, and independently of them."""

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=self.p["phi"][0, 1] * x))
        pyro.sample("g", Normal(self.p["phi"][0, 0], 1.0))


@pytest.mark.parametrize("make", [RowsGivenGlobal, RowsBeforeUnrelatedGlobal])
def test_cost_of_a_row_has_the_terms_of_the_row_and_no_unrelated_draw(make: Any) -> None:
    program = make()
    particles = draws(program, 3)
    (term,) = particles.score_terms
    g, z = (particles.site_draws[name].value for name in ("g", "z"))
    log_p = Bernoulli(logits=program.p["theta"][0, 0] + g).log_prob(z)
    log_p = log_p + Normal(z + g, 1.0).log_prob(program.x)
    log_q = Bernoulli(logits=program.p["phi"][0, 1] * program.x).log_prob(z)
    assert particles.log_w.shape == (3, 1)
    torch.testing.assert_close(term.cost, (log_p - log_q).detach())
    torch.testing.assert_close(term.score, log_q)


def test_cost_of_an_inner_member_has_its_own_terms() -> None:
    program = NestedPlatesProgram()
    particles = draws(program, 2)
    row, member = particles.score_terms
    theta, phi = program.p["theta"], program.p["phi"]
    z, u = (particles.site_draws[name].value for name in ("z", "u"))
    log_p = Bernoulli(logits=theta[1, 0] * z + theta[2, :2]).log_prob(u)
    log_p = log_p + Normal(theta[3, :2] * u + theta[3, 2] * z, 1.0).log_prob(program.x)
    log_q = Bernoulli(logits=phi[1, 0] * z + phi[2, :2]).log_prob(u)
    torch.testing.assert_close(member.cost, (log_p - log_q).detach())
    torch.testing.assert_close(row.cost[..., 0], particles.log_w.detach())


@pytest.mark.parametrize("make", [DecayingAverageBaseline, NeuralBaseline])
def test_baseline_averages_the_costs_of_each_site(make: Any) -> None:
    program, estimator = NestedPlatesProgram(), make(num_particles=2)
    estimator.loss_and_grads(program.model, program.guide, program.x)
    assert estimator.average().shape == (2,)
    loaded = make(num_particles=2)
    loaded.load_state_dict(estimator.state_dict())
    assert torch.equal(loaded.average(), estimator.average())
    loaded.loss_and_grads(program.model, program.guide, program.x)
    assert not torch.equal(loaded.average(), estimator.average())
