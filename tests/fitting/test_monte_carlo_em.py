"""Monte-Carlo EM against maximum likelihood by quadrature, with a chain that is none as twin."""

import math
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
from ppl_lvm.core.storage import save_checkpoint
from ppl_lvm.data import load_data
from ppl_lvm.fitting.em import fit_em
from ppl_lvm.fitting.monte_carlo_em import fit_mcem
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models import PPCA, VAE, FactorModel, GaussianMixture
from ppl_lvm.runs.comparison import compare
from ppl_lvm.runs.directory import load_run
from ppl_lvm.runs.run import Run
from ppl_lvm.training.em.complete_likelihood import CompleteLikelihood
from ppl_lvm.training.em.nuts_sampler import NutsSampler

SHORT: dict[str, Any] = {"warmup": 15, "guide_steps": 100, "progress": False}
ANSWERS: dict[str, Any] = {"latent": 1, "likelihood": "bernoulli"}


@pytest.fixture(autouse=True)
def _doubles() -> None:
    torch.set_default_dtype(torch.float64)


def _answers() -> Tensor:
    """120 people's answers to 5 questions, one ability."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(120, 1, generator=draw)
    W = torch.tensor([1.5, 1.0, -1.2, 0.8, 2.0])
    return torch.bernoulli((z * W + torch.linspace(-1, 1, 5)).sigmoid(), generator=draw)


def _most_likely(x: Tensor) -> float:
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


def _exact(run: Run, x: Tensor) -> float:
    """The likelihood of its parameters, nats per row, by quadrature."""
    model: Any = run.model
    value: float = model.log_evidence(x).mean().item()
    return value


def _prior(self: Any, count: int, *, adapt: bool) -> tuple[dict[str, Tensor], float]:
    return {"z": torch.randn(count, 120, 1)}, 1.0


@pytest.mark.slow
def test_it_reaches_the_maximum_that_quadrature_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    x = _answers()
    best, room = _most_likely(x), 10 / (2 * 120)  # what 10 parameters gain by fitting noise
    asked: dict[str, Any] = {**SHORT, "settings": ANSWERS, "max_iterations": 12, "num_draws": 10}
    found = fit_mcem(FactorModel, x, **asked)
    short = best - _exact(found, x)
    assert -1e-9 < short < 0.1 * room
    assert found.draws["z"].shape == (10, 120, 1)
    assert found.parameters()["W"].shape == (5, 1)
    monkeypatch.setattr(NutsSampler, "draw", _prior)  # a wrong twin: an E-step that sees no data
    wrong = fit_mcem(FactorModel, x, **asked)
    assert best - _exact(wrong, x) > room


def test_it_reaches_the_maximum_in_closed_form() -> None:
    """A linear Gaussian model, whose likelihood EM makes largest."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 1, generator=draw) * torch.tensor([1.0, -2.0, 0.5])
    x = x + 0.5 * torch.randn(60, 3, generator=draw)
    best = fit_em(PPCA(1), x).results["bound"]
    found = fit_mcem(PPCA(1), x, max_iterations=10, num_draws=10, **SHORT)
    short = best - found.results["log_evidence"]  # its guide is the exact posterior
    room = 7 / (2 * 60)  # what 7 parameters gain by fitting noise
    assert -1e-9 < short < 0.1 * room
    assert found.results["bound"] == pytest.approx(found.results["log_evidence"], abs=1e-9)
    assert found.history["bound"] == []  # nothing of the guide was to be learned


pytestmark = pytest.mark.xdist_group("mcem")  # the runs below are made once


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with rows held out, and beside it one of the usual kind on the same rows."""
    torch.set_default_dtype(torch.float64)  # tests/conftest.py puts it back
    place = tmp_path_factory.mktemp("runs")
    np.save(place / "answers.npy", _answers().numpy())
    x = load_data(place / "answers.npy")
    asked: dict[str, Any] = {"settings": ANSWERS, "validation": 40, "progress": False}
    mcem: dict[str, Any] = {"max_iterations": 6, "num_draws": 5, "warmup": 10, "guide_steps": 200}
    fit_mcem(FactorModel, x, directory=place / "mcem", **mcem, **asked)
    fit(FactorModel, None, x, directory=place / "elbo", num_steps=200, **asked)
    return place


def test_a_run_comes_back_and_answers_for_new_rows(kept: Path) -> None:
    x, run = _answers(), load_run(kept / "mcem")
    assert run.draws["z"].shape == (5, 80, 1)  # of the rows it was fitted to
    assert len(run.history["complete"]) == len(run.history["accept"]) == 6
    assert run.results["steps"] == 6
    evidence = run.log_evidence(x)
    assert evidence.value == pytest.approx(_exact(run, x), abs=5 * evidence.monte_carlo_error)
    assert run.results["held_out"] < run.results["log_evidence"]  # the guide's gap
    posterior = run.to_arviz(x[:7], num_samples=20, draws="resampled").posterior
    assert posterior["z"].shape == (1, 20, 7, 1)
    assert {p.name for p in (kept / "mcem" / "pictures").iterdir()} >= {"training.png"}


def test_its_guide_learns_and_leaves_the_model_alone(kept: Path) -> None:
    """A longer training of the guide moves no parameter of the model, and closes its gap."""
    run, gap = load_run(kept / "mcem"), []
    longer: dict[str, Any] = {"settings": ANSWERS, "validation": 40, "progress": False}
    longer |= {"max_iterations": 6, "num_draws": 5, "warmup": 10}
    for steps in (1, 200):
        other = fit_mcem(FactorModel, _answers(), guide_steps=steps, **longer)
        assert torch.equal(other.parameters()["W"], run.parameters()["W"])
        gap.append(other.results["log_evidence"] - other.results["held_out"])
    assert gap[1] < 0.3 * gap[0]


def test_it_is_compared_with_other_runs(kept: Path) -> None:
    found = compare([load_run(kept / "mcem"), load_run(kept / "elbo")], num_particles=100)
    assert {score.name for score in found.scores} == {"mcem", "elbo"}
    assert len(found.scores[0].per_row) == 40


def test_a_run_that_was_cut_off_goes_on_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, count = _answers()[:40], 0
    asked: dict[str, Any] = {"settings": ANSWERS, "max_iterations": 6, "num_draws": 4, "warmup": 8}
    asked |= {"guide_steps": 10, "checkpoint_seconds": 0.0, "progress": False}
    whole = fit_mcem(FactorModel, x, directory=tmp_path / "whole", **asked)

    def cut_off(*given: Any) -> None:
        nonlocal count
        count += 1
        if count == 4:  # past the half from which the mean is taken; adaptation was at 4
            raise KeyboardInterrupt
        save_checkpoint(*given)

    monkeypatch.setattr(ppl_lvm.training.iterate, "save_checkpoint", cut_off)
    with pytest.raises(KeyboardInterrupt):
        fit_mcem(FactorModel, x, directory=tmp_path / "cut", **asked)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has not finished"):
        load_run(tmp_path / "cut")
    with pytest.raises(ValueError, match="options differs in num_draws"):
        fit_mcem(
            FactorModel, x, directory=tmp_path / "cut", resume=True, **{**asked, "num_draws": 3}
        )
    resumed = fit_mcem(FactorModel, x, directory=tmp_path / "cut", resume=True, **asked)
    assert resumed.history == whole.history
    for name, value in whole.parameters().items():
        assert torch.equal(resumed.parameters()[name], value)
    assert torch.equal(resumed.draws["z"], whole.draws["z"])
    again = fit_mcem(FactorModel, x, directory=tmp_path / "cut", resume=True, **asked)
    assert again.results["bound"] == whole.results["bound"]


def test_a_model_with_a_network_is_fitted_without_a_warning() -> None:
    x = torch.bernoulli(torch.rand(20, 4))
    asked: dict[str, Any] = {"max_iterations": 2, "num_draws": 2, **SHORT, "warmup": 3}
    run = fit_mcem(VAE, x, settings={"latent": 1, "hidden": (3,)}, **asked)
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


def test_draws_together_weigh_as_draws_alone() -> None:
    y, group = torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.tensor([0, 1, 2, 2])
    for model, batch, draws in (
        (_Groups(), (y, group), {"b": torch.randn(4, 3)}),
        (PPCA(2, 3), (torch.randn(5, 3),), {"z": torch.randn(4, 5, 2)}),
    ):
        joint = CompleteLikelihood(model, batch)
        alone = sum(joint._log_joint({k: v[s] for k, v in draws.items()}) for s in range(4)) / 4
        torch.testing.assert_close(joint._q(draws), alone)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (GaussianMixture(2), {}, "'z' is discrete, which NUTS does not draw"),
        (PPCA(1), {"num_draws": 0}, "num_draws must be a whole number"),
        (PPCA(1), {"resume": True}, "needs the directory"),
        (PPCA(1), {"guide": "ppl_lvm.guides:GlobalNormal"}, "no latent outside the plate"),
    ],
)
def test_what_it_refuses(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_mcem(model, torch.randn(20, 3), **options)
