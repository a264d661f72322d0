"""Weights of rows equal repeated rows."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Categorical, Delta, MultivariateNormal, Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm import compare, fit, fit_adversarial, fit_em, fit_mcem, load_data, load_run
from ppl_lvm.diagnostics.diagnosis import diagnose
from ppl_lvm.estimators import LeaveOneOut
from ppl_lvm.models import FactorAnalysis, FactorModel, GaussianMixture
from ppl_lvm.posterior.evidence import log_evidence
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.em.batch import EM
from ppl_lvm.training.em.statistics import Sums
from ppl_lvm.training.preparation import PreparedPrograms, prepare_pair
from small_programs import Mean, MeanGuide

pytestmark = pytest.mark.usefixtures("no_figures")

WEIGHTS = torch.tensor([2.0, 0.0, 1.0, 3.0, 1.0, 2.0, 1.0, 2.0])


def rows() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(8, 2, generator=generator) + torch.tensor([3.0, 0.0]) * (
        torch.arange(8)[:, None] % 2
    )


def repeated() -> Tensor:
    return rows().repeat_interleave(WEIGHTS.long(), 0)


class Mixture(PyroModule):
    """Two components whose assignments are summed out."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor([[0.0, 0.5], [2.0, 0.0]]))
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(self.means[k], 1.0).to_event(1), obs=x)


def nothing(x: Tensor) -> None:
    """A guide without sites."""


@pytest.mark.parametrize("engine", ["eager", "captured"])
def test_weighted_steps_equal_steps_on_repeated_rows(engine: Any) -> None:
    options: dict[str, Any] = {"num_steps": 20, "engine": engine, "progress": False}
    weighted = fit(Mixture(), nothing, rows(), weights=WEIGHTS, **options)
    plain = fit(Mixture(), nothing, repeated(), objective="ELBO", **options)
    assert weighted.history["bound"] == pytest.approx(plain.history["bound"], rel=1e-5)
    assert weighted.results["bound"] == pytest.approx(plain.results["bound"], rel=1e-5)
    for name, value in weighted.parameters().items():
        torch.testing.assert_close(value, plain.parameters()[name], rtol=1e-4, atol=1e-5)
    for name in ("log_evidence", "log_evidence_standard_error"):
        assert weighted.results[name] == pytest.approx(plain.results[name], rel=1e-4)


def coins(x: Tensor) -> None:
    """z ~ N(0, 1); b_n ~ Bernoulli(σ(a)), x_n ~ N(z + 2 b_n, 1)."""
    z = pyro.sample("z", Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        b = pyro.sample("b", Bernoulli(logits=pyro.param("a", torch.zeros(()))))
        pyro.sample("x", Normal(z + 2 * b, 1.0), obs=x)


def coins_guide(x: Tensor, how: str | None = None) -> None:
    """A point for z, and Bernoulli draws or their enumeration."""
    pyro.sample("z", Delta(pyro.param("m", torch.ones(()))))
    slope = pyro.param("slope", torch.tensor(0.3))
    with pyro.plate("data", len(x), dim=-1):
        infer = {"enumerate": how} if how else {}
        pyro.sample("b", Bernoulli(logits=slope * (x - 1)), infer=infer)


def gradient(guide: Any, objective: Any, x: Tensor, weights: Tensor | None) -> Tensor:
    """Of the loss in a, m and slope."""
    data = load_data(x) if weights is None else load_data(x).with_weights(weights)
    pair, _ = prepare_pair(coins, guide, objective, (x,), data)
    programs = PreparedPrograms(pair, (x,), len(x), row_weights=weights)
    batch = (x,) if weights is None else (x, weights)
    with pair.scope():
        pair.objective.loss_and_grads(programs.model, programs.guide, *batch)
    leaves = pair.unconstrained_parameters
    return torch.stack([leaves[name].grad for name in sorted(leaves)])


ENUMERATED = partial(coins_guide, how="parallel")


def test_pyros_objectives_weight_rows_that_the_guide_enumerates() -> None:
    x = rows()[:, 0]
    repeats = x.repeat_interleave(WEIGHTS.long())
    weighted = gradient(ENUMERATED, "TraceEnum_ELBO", x, WEIGHTS)
    torch.testing.assert_close(weighted, gradient(ENUMERATED, "TraceEnum_ELBO", repeats, None))


@pytest.mark.parametrize(
    "objective", ["Trace_ELBO", pytest.param("TraceGraph_ELBO", marks=pytest.mark.slow)]
)
def test_score_terms_of_pyros_objectives_weight_rows(objective: str) -> None:
    """Copies of the rows are draws: their gradients have the mean of the enumerated one."""
    x = rows()[:, 0]
    expected = gradient(ENUMERATED, "TraceEnum_ELBO", x, WEIGHTS)
    pyro.set_rng_seed(0)
    copies = 100
    many, weights = x.repeat(copies), WEIGHTS.repeat(copies)
    draws = torch.stack([gradient(coins_guide, objective, many, weights) for _ in range(8)])
    # The prior of the point z counts once for all copies: its gradient is that of N(0, 1) at 1.
    once = torch.tensor([0.0, 1.0, 0.0])
    mean, error = (draws.mean(0) - once) / copies + once, draws.std(0) / 8**0.5 / copies
    assert bool(((mean - expected).abs() <= 6 * error + 1e-4).all())


@pytest.mark.parametrize("objective", ["Trace_ELBO", "TraceMeanField_ELBO", "TraceGraph_ELBO"])
def test_pyros_objectives_weight_rows_beside_a_global_draw(objective: str) -> None:
    x = rows()[:, 0]
    options: dict[str, Any] = {"num_steps": 5, "progress": False, "objective": objective}
    weighted = fit(Mean(), MeanGuide(), x, weights=WEIGHTS, **options)
    plain = fit(Mean(), MeanGuide(), x.repeat_interleave(WEIGHTS.long()), **options)
    assert weighted.history["bound"] == pytest.approx(plain.history["bound"], rel=1e-5)
    assert weighted.results["bound"] == pytest.approx(plain.results["bound"], rel=1e-5)


def test_gradient_of_a_batch_estimates_that_of_all_weighted_rows() -> None:
    """With a learning rate of 0 the bounds of an epoch average to that of all rows."""
    options: dict[str, Any] = {"optimizer": "SGD(lr=0.0)", "progress": False, "weights": WEIGHTS}
    batches = fit(Mixture(), nothing, rows(), batch_size=2, num_epochs=1, **options)
    whole = fit(Mixture(), nothing, rows(), num_steps=1, **options)
    assert np.mean(batches.history["bound"]) == pytest.approx(whole.history["bound"][0], rel=1e-5)


def test_validation_bound_is_a_weighted_mean() -> None:
    validation = load_data(rows()[:4]).with_weights(WEIGHTS[:4])
    train = load_data(rows()).with_weights(WEIGHTS)
    options: dict[str, Any] = {"num_steps": 3, "progress": False, "optimizer": "SGD(lr=0.0)"}
    run = fit(Mixture(), nothing, train, validation=validation, **options)
    other = rows()[:4].repeat_interleave(WEIGHTS[:4].long(), 0)
    plain = fit(Mixture(), nothing, repeated(), validation=other, **options)
    assert run.results["held_out"] == pytest.approx(plain.results["held_out"], rel=1e-5)
    assert run.results["log_evidence"] == pytest.approx(plain.results["log_evidence"], rel=1e-5)


def test_bound_with_a_global_latent_equals_that_of_repeated_rows() -> None:
    x = rows()[:, 0]
    options: dict[str, Any] = {"num_steps": 5, "progress": False}
    weighted = fit(Mean(), MeanGuide(), x, weights=WEIGHTS, **options)
    repeats = x.repeat_interleave(WEIGHTS.long())
    plain = fit(Mean(), MeanGuide(), repeats, objective="ELBO", **options)
    assert weighted.history["bound"] == pytest.approx(plain.history["bound"], rel=1e-5)
    as_weights = load_data(repeats).with_weights(torch.ones(len(repeats)))  # with the same draws
    expected = plain.log_evidence(as_weights, seed=0)
    for name in ("log_evidence", "log_evidence_monte_carlo_error", "log_evidence_ess"):
        assert weighted.results[name] == pytest.approx(expected.to_json()[name], rel=1e-4)
    assert weighted.results["log_evidence_kind"] == "joint"
    new = load_data(x + 1.0).with_weights(WEIGHTS)
    measured = compare([weighted, weighted], new).scores[0]
    other = compare([plain, plain], repeats + 1.0).scores[0]
    for name in ("value", "standard_error", "monte_carlo_error"):
        assert getattr(measured, name) == pytest.approx(getattr(other, name), rel=1e-3)
    assert measured.no_loo == other.no_loo


class Switch(PyroModule):
    """A global mean, a flag of the whole data set, and (with `local`) a latent of each row."""

    def __init__(self, local: bool) -> None:
        super().__init__()
        self.local = local

    def forward(self, x: Tensor) -> None:
        mean = pyro.sample("mean", Normal(0.0, 1.0))
        flag = pyro.sample("flag", Bernoulli(0.5), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(mean + flag, 0.5)) if self.local else mean + flag
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        mean = pyro.sample("mean", Normal(0.3, 0.8))
        if self.local:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", Normal((x + 4 * mean + 2) / 5, 0.6))


@pytest.mark.parametrize("local", [False, True])
def test_evidence_of_weighted_rows_with_shared_latents_is_that_of_repeated_rows(
    local: bool,
) -> None:
    """Two states of the flag: x ~ N(flag, C) with C the covariance of the repeated rows."""
    model = Switch(local)
    pair = ModelGuidePair(model, model.guide, LeaveOneOut(num_particles=2))
    x = rows()[:, 0] / 3
    repeats, train = x.repeat_interleave(WEIGHTS.long()), (torch.linspace(-1.0, 2.0, 8),)
    both = [
        log_evidence(pair, x, weights=WEIGHTS),
        log_evidence(pair, repeats, weights=torch.ones(len(repeats))),
    ]
    N = len(repeats)
    covariance = torch.ones(N, N) + torch.eye(N) * (1.25 if local else 1.0)
    joint = [MultivariateNormal(torch.full((N,), c), covariance) for c in (0.0, 1.0)]
    exact = (torch.stack([d.log_prob(repeats) for d in joint]).logsumexp(0) - math.log(2)) / N
    for evidence in both:
        assert evidence.value == pytest.approx(float(exact), abs=5 * evidence.monte_carlo_error)
    if local:
        return
    assert both[0].value == pytest.approx(both[1].value, rel=1e-5)
    times = train[0].repeat_interleave(WEIGHTS.long())
    predictive = log_evidence(
        pair, x, weights=WEIGHTS, training=lambda: train, training_weights=WEIGHTS
    )
    expected = log_evidence(pair, repeats, training=lambda: (times,))
    for name in ("value", "row_by_row", "standard_error", "monte_carlo_error"):
        assert getattr(predictive, name) == pytest.approx(getattr(expected, name), rel=1e-4)
    wrong = log_evidence(pair, x, weights=WEIGHTS, training=lambda: train)
    assert abs(wrong.value - expected.value) > 1e-3


def test_restarts_of_weighted_rows_are_trained_together() -> None:
    options: dict[str, Any] = {"num_steps": 6, "restarts": 2, "progress": False, "batch_size": 4}
    together = fit(Mixture(), nothing, rows(), weights=WEIGHTS, **options)
    apart = fit(Mixture(), nothing, rows(), weights=WEIGHTS, engine="eager", **options)
    assert [e["engine"] for e in together.restarts] != [e["engine"] for e in apart.restarts]
    for a, b in zip(together.restarts, apart.restarts, strict=True):
        assert a["bound"] == pytest.approx(b["bound"], rel=1e-5)


@pytest.mark.slow
def test_diagnosis_and_monte_carlo_em_repeat_weighted_rows() -> None:
    options: dict[str, Any] = {"num_steps": 60, "progress": False}
    weighted = fit(Mean(), MeanGuide(), rows()[:, 0], weights=WEIGHTS, **options)
    repeats = rows()[:, 0].repeat_interleave(WEIGHTS.long())
    diagnosis = weighted.diagnose(temperatures=10)
    plain = diagnose(weighted.pair, weighted.history, repeats, temperatures=10)
    measured = {f.name: f.value for f in diagnosis.findings}
    assert measured == {f.name: f.value for f in plain.findings}
    with pytest.raises(ValueError, match="x: the run weighted its training rows"):
        weighted.diagnose(rows()[:, 0])
    settings: dict[str, Any] = {"max_iterations": 2, "guide_steps": 2, "progress": False}
    model = FactorModel(latent=1, observed=2, likelihood="bernoulli")
    em = fit_mcem(model, (rows() > 0).float(), weights=WEIGHTS, **settings)
    same = fit_mcem(model, (repeated() > 0).float(), **settings)
    assert em.history["complete"] == same.history["complete"]
    assert em.results["log_evidence"] == same.results["log_evidence"]


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_weighted_em_equals_em_on_repeated_rows(scale: float) -> None:
    """A common factor of all weights changes nothing per row."""
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).double()
    weights = torch.arange(60) % 3
    for model in (GaussianMixture(components=2, observed=3), FactorAnalysis(latent=1, observed=3)):
        model.initialize(x)
        state = {name: t[None].clone() for name, t in model.em_state().items()}
        bounds = []
        for data in (
            load_data(x).with_weights(weights * scale),
            load_data(x.repeat_interleave(weights, 0)),
        ):
            em = EM(model, data, {k: t.clone() for k, t in state.items()}, held_out=data)
            em.run(10)
            bounds.append(em.bounds[0] + em.held_out_bounds[0])
        assert bounds[0] == pytest.approx(bounds[1], rel=1e-7)


def test_fit_em_takes_weights_and_records_their_evidence() -> None:
    run = fit_em(GaussianMixture(components=2), rows(), weights=WEIGHTS, max_iterations=3)
    again = fit_em(GaussianMixture(components=2), rows(), weights=3 * WEIGHTS, max_iterations=3)
    assert run.results["bound"] == pytest.approx(again.results["bound"], rel=1e-6)
    assert run.results["log_evidence"] == pytest.approx(run.results["bound"], rel=1e-5)


def test_all_different_weights_give_the_sums_of_equal_ones() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
    model = GaussianMixture(components=2, observed=3)
    model.initialize(x)
    state = {name: t[None] for name, t in model.em_state().items()}
    weights = torch.arange(50) % 4
    many = weights + 1e-9 * torch.arange(50)  # more than MOST_WEIGHTS values
    plain, log_p = Sums(model, load_data(x.repeat_interleave(weights, 0))).over(state)
    for w in (weights, many):
        sums, weighted_log_p = Sums(model, load_data(x).with_weights(w)).over(state)
        torch.testing.assert_close(weighted_log_p, log_p, rtol=1e-6, atol=0)
        for name, value in plain.items():
            torch.testing.assert_close(sums[name], value, rtol=1e-5, atol=1e-6)


def test_column_of_a_file_weights_rows_and_is_reloaded(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    table = np.column_stack([rows().numpy(), WEIGHTS.numpy()])
    np.savetxt(path, table, delimiter=",", header="a,b,n", comments="")
    run = fit(
        Mixture(),
        nothing,
        str(path),
        weights="n",
        num_steps=5,
        progress=False,
        directory=tmp_path / "run",
    )
    plain = fit(Mixture(), nothing, repeated(), objective="ELBO", num_steps=5, progress=False)
    assert run.history["bound"] == pytest.approx(plain.history["bound"], rel=1e-5)
    assert run.record["data"]["source"]["weights"] == "n"
    reloaded = load_run(tmp_path / "run", model=Mixture, guide=nothing)
    data, _ = reloaded.data()
    assert data.weights is not None
    assert torch.equal(data.weights, WEIGHTS.double())
    assert data.columns == ["a", "b"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], "shape .2,. for 8 rows"),
        ([-1.0] + [1.0] * 7, "row 0 has the weight -1"),
        ([1.0] * 7 + [float("nan")], "row 7 has the weight nan"),
        ([0.0] * 8, "all weights are 0"),
        (["a"] * 8, r"Give an array \(8,\)"),
    ],
)
def test_wrong_weights_are_named(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"weights: .*{message}"):
        fit(Mixture(), nothing, rows(), weights=weights, num_steps=1, progress=False)


def test_weights_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(ValueError, match="weights: TraceEnum_ELBO sums 'k' out with one weight"):
        fit(Mixture(), nothing, rows(), weights=WEIGHTS, objective="TraceEnum_ELBO", num_steps=1)
    with pytest.raises(ValueError, match="weights: RenyiELBO treats all rows alike"):
        fit(Mean(), MeanGuide(), rows()[:, 0], weights=WEIGHTS, objective="RenyiELBO", num_steps=1)
    with pytest.raises(ValueError, match=r"fit_mcem repeats rows .* 0\.5 is no whole number"):
        fit_mcem(FactorModel(latent=1, observed=2), rows(), weights=WEIGHTS / 2)
    with pytest.raises(ValueError, match="fit_adversarial repeats rows"):
        fit_adversarial(Mixture(), rows(), weights=WEIGHTS / 2)
