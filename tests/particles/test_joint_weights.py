"""Joint weights of rows that depend on each other."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Categorical, Delta, Normal
from pyro.infer import config_enumerate
from pyro.poutine import mask, scale
from torch import Tensor

import ppl_lvm.estimators as estimators
from ppl_lvm import fit
from ppl_lvm.checks import check
from ppl_lvm.particles import analyze_for_particles
from ppl_lvm.particles.structure import PairStructure, analyze_pair
from ppl_lvm.testing.dependent_programs import (
    GlobalNeighborProgram,
    NeighborProgram,
    PenaltyProgram,
)
from ppl_lvm.testing.estimator_contract import check_expected_gradient

X = torch.tensor([0.3, -1.2, 2.0, 0.5, 1.0])
ZERO = torch.zeros(())
TABLE = torch.zeros(2)


def rare(x: Tensor) -> None:
    """Draws that are one once in 1,500 runs of five rows."""
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Bernoulli(logits=pyro.param("logit", torch.tensor(-9.0))))


def model_with(
    outside: Callable[[Tensor], Any] = lambda z: None, loc: Callable[[Tensor], Any] = lambda z: z
) -> Any:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(0.3))
            pyro.sample("x", Normal(loc(z), 1.0), obs=x)
        outside(z)

    return model


def total(z: Tensor) -> Tensor:
    return z.sum(-1, keepdim=True)


def structure(model: Any, guide: Any = rare, x: Tensor = X) -> PairStructure:
    return analyze_pair(model, guide, (x,), {})


OUTSIDE: dict[str, Callable[[Tensor], Any]] = {
    "factor": lambda z: pyro.factor("s", -10 * total(z)),
    "zero weight": lambda z: pyro.factor("s", ZERO * total(z)),
    "zero number": lambda z: pyro.factor("s", 0.0 * total(z)),
    "observation": lambda z: pyro.sample("s", Normal(ZERO * total(z), 1.0), obs=torch.ones(1)),
    "mask": lambda z: mask(pyro.factor, mask=total(z) > 3)("s", torch.ones(1)),
    "scale": lambda z: scale(pyro.factor, scale=1 + total(z))("s", torch.ones(1)),
    "index": lambda z: pyro.factor("s", TABLE[z[..., :1].long()]),
    "detached": lambda z: pyro.factor("s", z.detach().amax(-1, keepdim=True)),
    "Python number": lambda z: pyro.factor("s", torch.tensor([-10 * z.sum().item()])),
    "decision": lambda z: pyro.factor("s", torch.ones(1) if z.sum() > 0 else torch.zeros(1)),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_site_outside_the_plate_that_depends_on_draws_is_no_constant(name: str) -> None:
    result = structure(model_with(OUTSIDE[name]))
    assert result.joint_reason == "site 's' outside plate 'data' depends on the draws"
    assert result.data_plate is None
    assert not result.constant


def test_site_outside_the_plate_without_draws_is_a_constant() -> None:
    result = structure(model_with(lambda z: pyro.factor("s", ZERO * 2)))
    assert result.data_plate == {"data"}
    assert result.constant == {"s"}


def test_point_that_depends_on_draws_is_no_constant() -> None:
    def model(x: Tensor) -> None:
        model_with()(x)
        pyro.sample("s", Normal(0.0, 1.0))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=torch.tensor(-9.0)))
        pyro.sample("s", Delta(ZERO * z.sum()))

    assert structure(model, guide).data_plate is None


MIXED: dict[str, Callable[[Tensor], Any]] = {
    "row before": lambda z: torch.cat([z.new_zeros(1), z[:-1]]),
    "row before, zero weight": lambda z: ZERO * z.roll(1),
    "two rows before": lambda z: z.roll(2),
    "first row": lambda z: z + ZERO * z[0],
    "mean": lambda z: z - ZERO * z.mean(),
    "index": lambda z: TABLE[z.long().flip(0)],
    "comparison": lambda z: (z.cumsum(0) > 3).float(),
}


@pytest.mark.parametrize("name", MIXED)
def test_row_that_depends_on_draws_of_other_rows_has_no_weight_of_its_own(name: str) -> None:
    result = structure(model_with(loc=MIXED[name]))
    assert result.mixed == {"data": ("model", "x")}
    assert result.joint_reason is not None
    assert "depends on draws of other rows" in result.joint_reason


@pytest.mark.parametrize(
    "loc", [lambda z: z, lambda z: TABLE[z.long()], lambda z: torch.where(z > 0.5, 1.0, z)]
)
def test_row_that_depends_on_its_own_draws_keeps_its_weight(loc: Any) -> None:
    assert structure(model_with(loc=loc)).data_plate == {"data"}


def test_guide_that_mixes_rows_is_found() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", Normal(0.0, 1.0))
            z = pyro.sample("z", Normal(u, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", Normal(0.0, 1.0))
            pyro.sample("z", Normal(ZERO * u.mean(), 1.0))

    assert structure(model, guide).mixed == {"data": ("guide", "z")}


def test_check_warns_of_rows_that_depend_on_each_other() -> None:
    issues = check(model_with(loc=MIXED["row before, zero weight"]), rare, X)
    assert [(issue.code, issue.site) for issue in issues] == [("rows-mixed", "x")]
    suits = {objective.name: objective.supported for objective in issues.estimators}
    assert suits["LeaveOneOut"]
    assert not suits["Trace_ELBO"]
    assert not list(check(model_with(), rare, X))


def nothing(x: Tensor) -> None:
    pass


@pytest.mark.parametrize(
    ("loc", "outside", "message"),
    [
        (
            lambda k: k,
            lambda k: pyro.factor("s", k.sum()),
            "'s' outside plate 'data' depends on 'k'",
        ),
        (lambda k: ZERO * k.roll(1), lambda k: None, "'x' in one row .* depends on 'k' in other"),
    ],
)
def test_enumerated_rows_that_depend_on_each_other_are_rejected(
    loc: Any, outside: Any, message: str
) -> None:
    @config_enumerate
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", Categorical(torch.tensor([0.7, 0.3])))
            pyro.sample("x", Normal(loc(k).float(), 1.0), obs=x)
        outside(k)

    with pytest.raises(ValueError, match=message):
        structure(model, nothing)


@pytest.mark.filterwarnings("ignore:Particles run one by one")
@pytest.mark.parametrize("estimator", [estimators.ScoreFunction(), estimators.LeaveOneOut()])
@pytest.mark.parametrize(
    "program",
    [PenaltyProgram, NeighborProgram, pytest.param(GlobalNeighborProgram, marks=pytest.mark.slow)],
)
def test_estimator_with_weights_per_row_is_biased_on_dependent_rows(
    program: Any, estimator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong twin: the analysis that takes every row for independent."""
    from ppl_lvm.particles import structure as module
    from ppl_lvm.testing import estimator_expectations

    monkeypatch.setattr(estimator_expectations, "DEPENDENT", (program,))
    monkeypatch.setattr(estimator_expectations.programs, "ENUMERABLE", ())
    check_expected_gradient(estimator)
    monkeypatch.setattr(module, "mixed_plates", lambda *args: {})
    monkeypatch.setattr(module, "dependence_outside", lambda *args: None)
    with pytest.raises(AssertionError, match="declares `unbiased`"):
        check_expected_gradient(estimator)


def test_fit_with_a_penalty_of_rare_draws_finds_the_optimum() -> None:
    """The score term of the penalty lowers the logit; without it the data raise it."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(0.5))
            pyro.sample("x", Normal(3 * z, 1.0), obs=x)
        pyro.factor("penalty", -10 * total(z))

    def guide(x: Tensor) -> None:
        logit = pyro.param("logit", torch.tensor(-4.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=logit))

    x = torch.full((5,), 2.0)
    # One logit for all rows: log p(z = 1, x) - log p(z = 0, x) - 10.
    optimum = float(Normal(3.0, 1.0).log_prob(x[0]) - Normal(0.0, 1.0).log_prob(x[0])) - 10
    pyro.set_rng_seed(0)
    run = fit(
        model,
        guide,
        x,
        objective="LeaveOneOut(num_particles=20)",
        num_steps=100,
        optimizer="Adam(lr=0.05)",
        progress=False,
    )
    assert optimum == pytest.approx(-8.5)
    assert float(run.parameters()["logit"]) < -4.5


W = torch.zeros(2)


@pytest.mark.parametrize(
    ("loc", "problem"),
    [
        (lambda z: z @ W, None),
        (lambda z: z[..., 0] * W[0], None),
        (lambda z: z[:, 0].mean() * W[0] + z[..., 0], "another particle"),
        (lambda z: z[..., 0] + 0 * z.sum().item(), "a Python number"),
    ],
)
def test_zero_weight_does_not_hide_particles_that_mix(loc: Any, problem: str | None) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", Normal(loc(z), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))

    if problem is None:
        assert analyze_for_particles(model, guide, (X,), {}, 3).vectorized
        return
    with pytest.warns(UserWarning, match=f"one by one, because .*{problem}"):
        assert not analyze_for_particles(model, guide, (X,), {}, 3).vectorized
