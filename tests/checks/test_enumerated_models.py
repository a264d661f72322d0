"""Models with enumerated sites: nested plates and impossible values."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from enumerated_programs import ENUMERATE, MEANS, PI, PROGRAMS, REAL, bias
from pyro import poutine
from pyro.distributions import Bernoulli, Categorical, Normal, Poisson, Uniform
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from ppl_lvm import fit
from ppl_lvm.checks import check
from ppl_lvm.estimators import ELBO
from small_programs import nothing


@pytest.mark.parametrize("name", PROGRAMS)
def test_check_passes_enumerated_models_of_the_exact_bound(name: str) -> None:
    program = PROGRAMS[name]
    exact = -program.exact(program.x).item()
    assert [str(f) for f in check(program.model, nothing, program.x) if f.severity != "note"] == []
    plain = TraceEnum_ELBO(max_plate_nesting=3).loss(program.model, nothing, program.x)
    ours = ELBO().loss(program.model, nothing, program.x)
    assert plain == pytest.approx(exact, rel=1e-5)
    assert ours == pytest.approx(exact, rel=1e-5)


SLOW = pytest.mark.slow
SOME = [n if k % 3 == 0 else pytest.param(n, marks=SLOW) for k, n in enumerate(PROGRAMS)]


@pytest.mark.parametrize("name", SOME)
def test_fit_evaluates_enumerated_models_exactly(name: str) -> None:
    program = PROGRAMS[name]
    options = {"num_steps": 2, "optimizer": "SGD(lr=1e-9)", "progress": False}
    run = fit(program.model, None, program.x, **options)
    exact = program.exact(program.x).item() / len(program.x)
    assert run.results["bound"] == pytest.approx(exact, rel=1e-5)
    assert run.log_evidence(program.x).value == pytest.approx(exact, rel=1e-5)
    for probs in run.encode(program.x).values():
        torch.testing.assert_close(probs.sum(-1), torch.ones(probs.shape[:-1]))
    gradients = [p.isfinite().all() for p in run.parameters().values()]
    assert all(gradients)


def _all_excluded(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", Categorical(PI[:2]), infer=ENUMERATE)
        pyro.factor("rule", torch.where(x > 0, -math.inf, 0.0))
        pyro.sample("x", Normal(MEANS[k] + bias(), 1.0), obs=x)


def _excluded_together(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", Categorical(PI[:2]), infer=ENUMERATE)
        pyro.factor("one", torch.where((k == 0) & (x > 0), -math.inf, 0.0))
        pyro.factor("two", torch.where((k == 1) & (x > 0), -math.inf, 0.0))
        pyro.sample("x", Normal(MEANS[k] + bias(), 1.0), obs=x)


def _not_a_number(x: Tensor) -> None:
    """A state that is never drawn, with a density that is no number."""
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", Categorical(torch.tensor([0.5, 0.5, 0.0])), infer=ENUMERATE)
        pyro.factor("rule", torch.where(k == 2, math.nan, bias()))
        pyro.sample("x", Normal(MEANS[k], 1.0), obs=x)


def _no_gradient(x: Tensor) -> None:
    """A rate that is 0 in one state: -∞ for positive counts, and a gradient that is NaN."""
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", Bernoulli(0.5), infer=ENUMERATE)
        pyro.sample("x", Poisson(k * (1 + bias())), obs=(x.abs() * 3).floor())


def _validated(x: Tensor) -> None:
    """Without validate_args=False Pyro stops at the values outside the first support."""
    width = torch.tensor([1.0, 4.0]) * bias().exp()
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", Bernoulli(0.4), infer=ENUMERATE).long()
        pyro.sample("x", Uniform(-width[k], width[k]), obs=x)


def _second_order(x: Tensor) -> None:
    """A chain whose states depend on two before them, declared with one."""
    table = torch.full((2, 2, 2), 0.5)
    before = last = 0
    with pyro.plate("data", len(x), dim=-1):
        for i in pyro.markov(range(3)):
            k = pyro.sample(f"k{i}", Categorical(table[before, last]), infer=ENUMERATE)
            pyro.sample(f"x{i}", Normal(k + bias(), 1.0), obs=x)
            before, last = last, k


@pytest.mark.parametrize(
    ("model", "code", "site", "words"),
    [
        (_second_order, "enumeration-fails", "k0", "write pyro.markov(…, history=k)"),
        (_all_excluded, "not-finite", "rule", "for every value of the enumerated sites"),
        (_excluded_together, "not-finite", "k", "although each site allows some value"),
        (_not_a_number, "enumeration-fails", "k", "found invalid values"),
        (_no_gradient, "gradient-not-finite", "x", "its gradient is not"),
        (_validated, "value-outside-support", "x", "validate_args=False"),
    ],
)
def test_check_reports_enumerated_models_without_a_finite_bound(
    model: Callable[[Tensor], None], code: str, site: str, words: str
) -> None:
    (issue,) = [issue for issue in check(model, nothing, REAL) if issue.severity == "error"]
    assert (issue.code, issue.site) == (code, site)
    assert words in str(issue)


@pytest.mark.parametrize(
    "scale",
    [lambda z: 0.5, lambda z: torch.tensor(0.5), lambda z: 0.5 + z],
    ids=["number", "tensor", "enumerated"],
)
def test_fit_tempers_likelihoods_of_enumerated_sites(scale: Callable[[Tensor], Any]) -> None:
    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.3))
        with pyro.plate("obs", len(x)):
            z = pyro.sample("z", Bernoulli(p), infer=ENUMERATE)
            with poutine.scale(scale=scale(z)):
                pyro.sample("x", Normal(2 * z, 1.0), obs=x)

    x = torch.tensor([-0.5, 0.4, 1.9])
    z = torch.tensor([[0.0], [1.0]])
    tempered = Bernoulli(0.3).log_prob(z) + scale(z) * Normal(2 * z, 1.0).log_prob(x)
    exact = tempered.logsumexp(0).mean().item()
    issues = check(model, None, x)
    assert issues.ok
    assert not next(o for o in issues.estimators if o.name == "TraceEnum_ELBO").supported
    run = fit(model, None, x, num_steps=2, optimizer="SGD(lr=1e-9)", progress=False)
    assert run.results["bound"] == pytest.approx(exact, rel=1e-5)
    assert run.results["log_evidence"] == pytest.approx(exact, rel=1e-5)
