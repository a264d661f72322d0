"""Guides that enumerate or have factors: exact expectations, and log-weights."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Categorical, Delta, Normal
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

from ppl_lvm import check, fit
from ppl_lvm.estimators import ELBO, LeaveOneOut
from ppl_lvm.particles import log_weights

pytestmark = pytest.mark.usefixtures("doubles")

PARALLEL = {"enumerate": "parallel"}
WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
X = torch.tensor([-1.2, 0.4, 2.5, 0.1], dtype=torch.float64)


def locs() -> Tensor:
    return pyro.param("locs", lambda: torch.tensor([-1.0, 0.5, 2.0]))


def mixture(x: Tensor) -> None:
    means = locs()
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", Categorical(WEIGHTS))
        pyro.sample("x", Normal(means[k], 1.0), obs=x)


def mixture_guide(x: Tensor, enumerate_: str | None = "parallel") -> None:
    logits = pyro.param("logits", lambda: torch.linspace(-1, 1, 12).view(4, 3))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("k", Categorical(logits=logits), infer={"enumerate": enumerate_})


def chained(x: Tensor) -> None:
    """a -> b -> z_b -> x, and an inner plate of flags that depend on a."""
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", Bernoulli(0.3))
        b = pyro.sample("b", Bernoulli(0.2 + 0.5 * a))
        z = pyro.sample("z", Normal(b, 1.0))
        with pyro.plate("flags", 2, dim=-2):
            c = pyro.sample("c", Bernoulli(0.1 + 0.6 * a))
            pyro.sample("y", Normal(c + z, 0.5), obs=torch.stack([x, x + 1]))


def chained_guide(x: Tensor) -> None:
    weight = pyro.param("weight", lambda: torch.tensor([0.4, 0.3, 0.2, -0.7]))
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", Bernoulli(logits=weight[0] * x), infer=PARALLEL)
        b = pyro.sample("b", Bernoulli(logits=weight[1] + a), infer=PARALLEL)
        pyro.sample("z", Normal(weight[2] * x + b, 0.7))
        with pyro.plate("flags", 2, dim=-2):
            pyro.sample("c", Bernoulli(logits=weight[3] + a), infer=PARALLEL)


def shared(x: Tensor) -> None:
    """A global flag, enumerated by the guide."""
    means = locs()
    flag = pyro.sample("flag", Bernoulli(0.4))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", Normal(means[0] + flag, 1.0), obs=x)


def shared_guide(x: Tensor) -> None:
    logit = pyro.param("logit", lambda: torch.tensor(0.3))
    pyro.sample("flag", Bernoulli(logits=logit), infer=PARALLEL)


def loss_and_gradients(elbo: Any, model: Any, guide: Any, seed: int = 0) -> tuple[float, Any]:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    loss = elbo.differentiable_loss(model, guide, X)
    leaves = [leaf for _, leaf in sorted(pyro.get_param_store()._params.items())]
    return float(loss.detach()), [*torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("pair", [(mixture, mixture_guide), (shared, shared_guide)])
def test_elbo_of_an_enumerated_guide_is_the_exact_expectation(pair: Any) -> None:
    loss, gradients = loss_and_gradients(ELBO(), *pair)
    exact, exact_gradients = loss_and_gradients(TraceEnum_ELBO(max_plate_nesting=1), *pair)
    assert loss == pytest.approx(exact, rel=1e-12)
    torch.testing.assert_close(gradients, exact_gradients)


def test_elbo_of_a_chain_with_an_inner_plate_has_the_mean_of_pyros() -> None:
    draws = [
        loss_and_gradients(ELBO(num_particles=2000), chained, chained_guide, s) for s in range(8)
    ]
    pyros = TraceEnum_ELBO(max_plate_nesting=2, num_particles=1000, vectorize_particles=True)
    others = [loss_and_gradients(pyros, chained, chained_guide, s) for s in range(4)]

    def statistics(results: Any) -> tuple[Tensor, Tensor]:
        rows = torch.stack([torch.cat([torch.tensor([loss]), *g]) for loss, g in results])
        return rows.mean(0), rows.std(0) / len(rows) ** 0.5

    (mean, error), (other, other_error) = statistics(draws), statistics(others)
    assert ((mean - other).abs() <= 5 * (error**2 + other_error**2).sqrt()).all()
    assert float(error[0]) < 0.2


def test_log_weights_of_an_enumerated_guide_give_log_p() -> None:
    exact = (
        WEIGHTS.log() + Normal(torch.tensor([-1.0, 0.5, 2.0]), 1.0).log_prob(X[:, None])
    ).logsumexp(1)
    log_w = log_weights(mixture, mixture_guide, X, num_particles=20_000)
    estimate = log_w.logsumexp(0) - torch.tensor(20_000.0).log()
    error = (log_w - estimate).exp().std(0) / 20_000**0.5
    assert ((estimate - exact).abs() < 5 * error).all()
    twin = log_weights(mixture, lambda x: mixture_guide(x, None), X, num_particles=3)
    assert twin.shape == (3, 4)


def penalized_guide(x: Tensor) -> None:
    loc = pyro.param("loc", lambda: torch.tensor(0.2))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Normal(loc, 1.2))
        pyro.factor("penalty", 3.0 + z, has_rsample=True)


def normal_model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Normal(0.0, 1.0))
        pyro.sample("x", Normal(z, 1.0), obs=x)


def test_factor_of_a_guide_counts_in_the_elbo_and_not_in_log_weights() -> None:
    ours, gradients = loss_and_gradients(
        ELBO(20_000, analytic_kl=False), normal_model, penalized_guide
    )
    pyros = Trace_ELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=1)
    theirs, their_gradients = loss_and_gradients(pyros, normal_model, penalized_guide)
    assert ours == pytest.approx(theirs, abs=0.2)
    torch.testing.assert_close(gradients, their_gradients, atol=0.2, rtol=0)
    log_w = log_weights(normal_model, penalized_guide, X, num_particles=50_000)
    estimate = log_w.logsumexp(0) - torch.tensor(50_000.0).log()
    exact = Normal(0.0, 2**0.5).log_prob(X)
    torch.testing.assert_close(estimate, exact, atol=0.05, rtol=0)


def test_factor_that_may_be_a_jacobian_is_rejected() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            e = pyro.sample("e", Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", Delta(2 * e))
            pyro.factor("jacobian", torch.full_like(x, -0.7), has_rsample=True)

    with pytest.raises(ValueError, match=r"'jacobian' is a pyro.factor beside .* 'e'"):
        log_weights(normal_model, guide, X, num_particles=2)


def test_other_estimators_reject_enumerated_sites_and_factors_of_the_guide() -> None:
    with pytest.raises(ValueError, match="'k' is marked for enumeration, but LeaveOneOut draws"):
        LeaveOneOut().loss(mixture, mixture_guide, X)
    with pytest.raises(ValueError, match=r"'penalty' is a pyro.factor, which is no density"):
        LeaveOneOut().loss(normal_model, penalized_guide, X)


def test_elbo_rejects_a_row_site_that_depends_on_an_inner_enumerated_site() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("flags", 2, dim=-2):
                c = pyro.sample("c", Bernoulli(0.5))
            pyro.sample("x", Normal(c.sum(-2), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("flags", 2, dim=-2):
            pyro.sample("c", Bernoulli(0.5), infer=PARALLEL)

    with pytest.raises(ValueError, match="Site 'x' has 2 values at dimension -2"):
        ELBO().loss(model, guide, X)


@pytest.mark.parametrize("objective", [None, "ELBO", "TraceEnum_ELBO"])
def test_fit_with_an_enumerated_guide_reports_the_exact_evidence(objective: str | None) -> None:
    run = fit(
        mixture, mixture_guide, X, objective=objective, num_steps=400, optimizer="Adam(lr=0.05)"
    )
    means = run.parameters()["locs"]
    exact = (WEIGHTS.log() + Normal(means, 1.0).log_prob(X[:, None])).logsumexp(1)
    assert "not_computed" not in run.results or run.results["not_computed"] == {}
    evidence = run.log_evidence(X)
    assert abs(evidence.value - float(exact.mean())) < 5 * evidence.monte_carlo_error + 1e-9
    assert run.results["bound"] <= float(exact.mean()) + 1e-9
    assert run.results["bound"] == pytest.approx(float(exact.mean()), abs=0.05)


def test_check_offers_elbo_for_an_enumerated_guide() -> None:
    suited = {each.name for each in check(mixture, mixture_guide, X).estimators if each.supported}
    assert suited == {"ELBO", "TraceEnum_ELBO"}


def test_check_runs_an_enumerated_guide_as_training_does() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", Categorical(WEIGHTS), infer=PARALLEL)
            pyro.sample("z", Normal(x.expand(k.shape), 1.0))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", Categorical(WEIGHTS))
            pyro.sample("x", Normal(pyro.sample("z", Normal(0.0, 1.0)), 1.0), obs=x)

    issues = check(model, guide, X)
    assert issues.codes == ["enumeration-fails"]
    assert "'k' enumerated" in issues[0].message
