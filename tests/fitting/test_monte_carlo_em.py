"""Monte Carlo EM against maximum likelihood by quadrature."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

import ppl_lvm.training.iterate
from ppl_lvm import fit, fit_em, fit_mcem
from ppl_lvm.core.storage import save_checkpoint
from ppl_lvm.data import load_data
from ppl_lvm.models import PPCA, VAE, FactorModel, GaussianMixture
from ppl_lvm.runs.comparison import compare
from ppl_lvm.runs.directory import load_run
from ppl_lvm.runs.run import Run
from ppl_lvm.training.em.complete_likelihood import CompleteLikelihood
from ppl_lvm.training.em.nuts_sampler import NutsSampler

SHORT: dict[str, Any] = {"warmup": 15, "guide_steps": 100, "progress": False}
ANSWERS: dict[str, Any] = {"latent": 1, "likelihood": "bernoulli"}


def _answers() -> Tensor:
    """Answers of 120 people to 5 questions, explained by one ability."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(120, 1, generator=draw)
    W = torch.tensor([1.5, 1.0, -1.2, 0.8, 2.0])
    return torch.bernoulli((z * W + torch.linspace(-1, 1, 5)).sigmoid(), generator=draw)


def _maximum_likelihood(x: Tensor) -> float:
    """The maximum of the likelihood, nats per row, by quadrature and gradient."""
    model = FactorModel(**ANSWERS)
    model.initialize(x)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -model.log_evidence(x).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return -loss().item()


def _exact_likelihood(run: Run, x: Tensor) -> float:
    """The likelihood of its parameters, nats per row, by quadrature."""
    model: Any = run.model
    value: float = model.log_evidence(x).mean().item()
    return value


def _prior(self: Any, count: int, *, adapt: bool) -> tuple[dict[str, Tensor], float]:
    return {"z": torch.randn(count, 120, 1)}, 1.0


@pytest.mark.slow
def test_mcem_reaches_the_maximum_found_by_quadrature(monkeypatch: pytest.MonkeyPatch) -> None:
    x = _answers()
    best, room = _maximum_likelihood(x), 10 / (2 * 120)  # what 10 parameters gain by fitting noise
    options: dict[str, Any] = {**SHORT, "settings": ANSWERS, "max_iterations": 12, "num_draws": 10}
    run = fit_mcem(FactorModel, x, **options)
    short = best - _exact_likelihood(run, x)
    assert -1e-9 < short < 0.1 * room
    assert run.draws["z"].shape == (10, 120, 1)
    assert run.parameters()["W"].shape == (5, 1)
    monkeypatch.setattr(NutsSampler, "draw", _prior)  # a wrong twin: its E-step ignores the data
    wrong = fit_mcem(FactorModel, x, **options)
    assert best - _exact_likelihood(wrong, x) > room


@pytest.mark.slow
def test_mcem_reaches_the_maximum_of_em_for_a_linear_gaussian_model() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 1, generator=draw) * torch.tensor([1.0, -2.0, 0.5])
    x = x + 0.5 * torch.randn(60, 3, generator=draw)
    best = fit_em(PPCA(1), x).results["bound"]
    run = fit_mcem(PPCA(1), x, max_iterations=20, num_draws=10, **SHORT)
    short = best - run.results["log_evidence"]  # its guide is the exact posterior
    room = 7 / (2 * 60)  # what 7 parameters gain by fitting noise
    assert -1e-9 < short < 0.3 * room  # at most .17 of it over seeds
    assert run.results["bound"] == pytest.approx(run.results["log_evidence"], abs=1e-9)
    assert run.history["bound"] == []  # the guide has no parameters


pytestmark = [
    pytest.mark.xdist_group("mcem"),  # the runs below are fitted once
    pytest.mark.usefixtures("doubles"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by Monte Carlo EM and a run by the ELBO, on the same rows."""
    torch.set_default_dtype(torch.float64)  # tests/conftest.py puts it back
    folder = tmp_path_factory.mktemp("runs")
    np.save(folder / "answers.npy", _answers().numpy())
    x = load_data(folder / "answers.npy")
    common: dict[str, Any] = {"settings": ANSWERS, "validation": 40, "progress": False}
    mcem: dict[str, Any] = {"max_iterations": 6, "num_draws": 5, "warmup": 10, "guide_steps": 200}
    fit_mcem(FactorModel, x, directory=folder / "mcem", **mcem, **common)
    fit(FactorModel, None, x, directory=folder / "elbo", num_steps=200, **common)
    return folder


@pytest.mark.slow
def test_mcem_run_is_loaded_and_evaluates_new_rows(runs: Path) -> None:
    x, run = _answers(), load_run(runs / "mcem")
    assert run.draws["z"].shape == (5, 80, 1)  # of the training rows
    assert len(run.history["complete"]) == len(run.history["accept"]) == 6
    assert run.results["steps"] == 6
    evidence = run.log_evidence(x)
    assert evidence.value == pytest.approx(
        _exact_likelihood(run, x), abs=5 * evidence.monte_carlo_error
    )
    assert run.results["held_out"] < run.results["log_evidence"]  # the guide's gap
    posterior = run.to_arviz(x[:7], num_samples=20, draws="resampled").posterior
    assert posterior["z"].shape == (1, 20, 7, 1)
    assert {p.name for p in (runs / "mcem" / "pictures").iterdir()} >= {"training.png"}


@pytest.mark.slow
def test_training_of_the_guide_does_not_change_the_model(runs: Path) -> None:
    """A longer training of the guide closes its gap."""
    run, gap = load_run(runs / "mcem"), []
    longer: dict[str, Any] = {"settings": ANSWERS, "validation": 40, "progress": False}
    longer |= {"max_iterations": 6, "num_draws": 5, "warmup": 10}
    for steps in (1, 200):
        other = fit_mcem(FactorModel, _answers(), guide_steps=steps, **longer)
        assert torch.equal(other.parameters()["W"], run.parameters()["W"])
        gap.append(other.results["log_evidence"] - other.results["held_out"])
    assert gap[1] < 0.3 * gap[0]


@pytest.mark.slow
def test_mcem_run_is_compared_with_an_elbo_run(runs: Path) -> None:
    comparison = compare([load_run(runs / "mcem"), load_run(runs / "elbo")], num_particles=100)
    assert {score.name for score in comparison.scores} == {"mcem", "elbo"}
    assert len(comparison.scores[0].per_row) == 40


@pytest.mark.slow
def test_interrupted_mcem_resumes_to_equal_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, count = _answers()[:40], 0
    options: dict[str, Any] = {
        "settings": ANSWERS,
        "max_iterations": 6,
        "num_draws": 4,
        "warmup": 8,
    }
    options |= {"guide_steps": 10, "checkpoint_seconds": 0.0, "progress": False}
    whole = fit_mcem(FactorModel, x, directory=tmp_path / "whole", **options)

    def interrupt(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 4:  # in the second half, which is averaged; adaptation was at 4
            raise KeyboardInterrupt
        save_checkpoint(*arguments)

    monkeypatch.setattr(ppl_lvm.training.iterate, "save_checkpoint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit_mcem(FactorModel, x, directory=tmp_path / "interrupted", **options)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has not finished"):
        load_run(tmp_path / "interrupted")
    with pytest.raises(ValueError, match="options differs in num_draws"):
        fit_mcem(
            FactorModel,
            x,
            directory=tmp_path / "interrupted",
            resume=True,
            **{**options, "num_draws": 3},
        )
    resumed = fit_mcem(FactorModel, x, directory=tmp_path / "interrupted", resume=True, **options)
    assert resumed.history == whole.history
    for name, value in whole.parameters().items():
        assert torch.equal(resumed.parameters()[name], value)
    assert torch.equal(resumed.draws["z"], whole.draws["z"])
    again = fit_mcem(FactorModel, x, directory=tmp_path / "interrupted", resume=True, **options)
    assert again.results["bound"] == whole.results["bound"]


def test_mcem_fits_a_model_with_a_network_without_warnings() -> None:
    x = torch.bernoulli(torch.rand(20, 4))
    options: dict[str, Any] = {"max_iterations": 2, "num_draws": 2, **SHORT, "warmup": 3}
    run = fit_mcem(VAE, x, settings={"latent": 1, "hidden": (3,)}, **options)
    assert math.isfinite(run.results["log_evidence"])


class _Groups(PyroModule):
    """Effects of groups outside the plate "data": b_g ~ N(0, 1), y_n ~ Bernoulli(σ(a + b_g))."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))

    def forward(self, y: Tensor, group: Tensor) -> None:
        b = pyro.sample("b", Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(y), dim=-1):
            pyro.sample("y", Bernoulli(logits=self.a + b[..., group]), obs=y)


def test_broadcast_draws_have_the_log_joint_of_looped_draws() -> None:
    y, group = torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.tensor([0, 1, 2, 2])
    for model, batch, draws in (
        (_Groups(), (y, group), {"b": torch.randn(4, 3)}),
        (PPCA(2, 3), (torch.randn(5, 3),), {"z": torch.randn(4, 5, 2)}),
    ):
        likelihood = CompleteLikelihood(model, batch)
        looped = likelihood._looped_log_joint(draws) / 4
        torch.testing.assert_close(likelihood._q(draws), looped)
        assert likelihood.broadcasts


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (GaussianMixture(2), {}, "'z' is discrete, which NUTS does not draw"),
        (PPCA(1), {"num_draws": 0}, "num_draws=0 is too small"),
        (PPCA(1), {"resume": True}, "needs the directory"),
        (PPCA(1), {"guide": "ppl_lvm.guides:GlobalNormal"}, "no latent outside the plate"),
    ],
)
def test_fit_mcem_rejects_unsupported_models_and_options(
    model: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_mcem(model, torch.randn(20, 3), **options)


class Draws(PyroModule):
    """z_n ~ N(0, 1), x_n ~ N(weight · f(z)_n, 1), where f may mix the draws of the E-step."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.weight = f, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(self.weight * self.f(z), 1.0), obs=x)


@pytest.mark.parametrize(
    ("f", "broadcasts"),
    [
        (torch.tanh, True),
        (lambda z: z.mean(-1, keepdim=True).expand_as(z), True),  # rows of one draw
        (lambda z: z - z.mean(0), False),  # a weight of zero hides them at the first step
        (lambda z: torch.where(z > 6, z.sum(), z), False),
        (lambda z: z[0].expand(z.shape), False),
        (lambda z: z * len(z), False),  # a shape is no dependence
        (lambda z: z * z.dim(), False),
        (lambda z: z if bool((z < 6).all()) else z.mean(0), False),
    ],
)
def test_draws_are_broadcast_where_they_stay_separate(
    f: Callable[[Tensor], Tensor], broadcasts: bool
) -> None:
    likelihood = CompleteLikelihood(Draws(f), (torch.ones(5),))
    draws = {"z": torch.randn(4, 5, generator=torch.Generator().manual_seed(0))}
    looped = likelihood._looped_log_joint(draws) / 4
    torch.testing.assert_close(likelihood._q(draws), looped)
    assert likelihood.broadcasts == broadcasts
