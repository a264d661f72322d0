"""EM against scikit-learn's mixtures, and with wrong models."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture as Sklearn
from torch import Tensor

import ppl_lvm.training.iterate
from forked import exit_statuses, start_processes
from largest_tensor import LargestTensor
from ppl_lvm import NotMonotoneError, fit_em
from ppl_lvm.core.storage import save_checkpoint
from ppl_lvm.data import load_data
from ppl_lvm.diagnostics.base import Restarts
from ppl_lvm.diagnostics.convergence import monotone_convergence
from ppl_lvm.diagnostics.diagnosis import eligible_restarts
from ppl_lvm.models import PPCA
from ppl_lvm.models.gmm import COVARIANCES, GaussianMixture
from ppl_lvm.models.hmm import HiddenMarkovModel
from ppl_lvm.models.linear_state_space import LinearStateSpace
from ppl_lvm.models.vae import VAE
from ppl_lvm.runs.directory import load_run
from ppl_lvm.training.em.batch import EM
from ppl_lvm.training.em.online import OnlineEM

pytestmark = pytest.mark.usefixtures("doubles")


def _sklearn(x: Tensor, state: dict[str, Tensor], covariance: str) -> Sklearn:
    """scikit-learn's optimum from θ, without its regularization of the variances."""
    variance = state["variance"].numpy()
    precision = np.linalg.inv(variance) if covariance in ("full", "tied") else 1 / variance
    theirs = Sklearn(
        len(state["weights"]),
        covariance_type=covariance,
        reg_covar=0,
        tol=1e-13,
        max_iter=3000,
        weights_init=state["weights"].numpy(),
        means_init=state["means"].numpy(),
        precisions_init=precision,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return theirs.fit(x.numpy())


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_em_reaches_the_optimum_of_scikit_learn_from_equal_initial_values(
    iris: Tensor, covariance: str
) -> None:
    model = GaussianMixture(3, covariance=covariance, floor=1e-9)
    torch.manual_seed(0)
    model.initialize(iris)
    theirs = _sklearn(iris, model.em_state(), covariance)
    data = load_data(iris)
    em = EM(model, data, {k: t[None] for k, t in model.em_state().items()}, tolerance=1e-12)
    em.run(3000)
    assert em.converged == [True]
    fitted = {name: t[0] for name, t in em.state.items()}
    assert em.bounds[0][-1] == pytest.approx(theirs.score(iris.numpy()), abs=1e-9)
    np.testing.assert_allclose(fitted["weights"], theirs.weights_, atol=1e-6)
    np.testing.assert_allclose(fitted["means"], theirs.means_, atol=1e-6)
    np.testing.assert_allclose(fitted["variance"], theirs.covariances_, atol=1e-6)
    model.set_em_state(fitted)
    assert model.log_likelihood(iris).mean().item() == pytest.approx(em.bounds[0][-1], abs=1e-8)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_one_em_iteration_equals_the_handwritten_one(covariance: str) -> None:
    x = (
        torch.randn(60, 3, dtype=torch.float64) + 1e4
    )  # far from zero, where raw moments lose digits
    model = GaussianMixture(4, covariance=covariance)
    model.initialize(x)
    state = model.em_state()
    with torch.no_grad():
        statistics, log_likelihood = model.e_step(state, x)
        exact = model.log_likelihood(x).sum()
        updated = model.m_step(state, statistics)
        model.maximize(x, model.responsibilities(x))
    torch.testing.assert_close(log_likelihood, exact, rtol=1e-8, atol=0)
    for name, expected in model.em_state().items():
        torch.testing.assert_close(updated[name], expected, rtol=1e-6, atol=1e-9)


def test_em_result_does_not_depend_on_the_batch_size(iris: Tensor) -> None:
    whole = fit_em(GaussianMixture, iris, settings={"components": 3})
    parts = fit_em(GaussianMixture, iris, settings={"components": 3}, batch_size=17)
    assert parts.history["bound"] == pytest.approx(whole.history["bound"], abs=1e-10)


def test_em_reads_a_memory_mapped_file_in_batches(iris: Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", iris.numpy())
    data = load_data(tmp_path / "rows.npy")
    sizes = []
    take = type(data).batch

    class Recorded(type(data)):  # type: ignore[misc]
        def batch(self, index: Tensor) -> tuple[Tensor, ...]:
            sizes.append(len(index))
            return take(self, index)

    model = GaussianMixture(2)
    model.initialize(iris)
    recorded = Recorded(data.store, data.name)
    state = {k: t[None] for k, t in model.em_state().items()}
    EM(model, recorded, dict(state), batch_size=32).run(3)
    assert max(sizes) == 32
    assert sum(sizes) == 3 * 150
    sizes.clear()
    OnlineEM(model, recorded, state, torch.arange(50), batch_size=32, decay=0.6).run(2)
    assert max(sizes) == 50
    assert sum(sizes) == 50 + 2 * 150


@pytest.mark.slow
def test_restarts_iterated_together_equal_separate_fits(iris: Tensor) -> None:
    together = fit_em(GaussianMixture, iris, settings={"components": 3}, restarts=4, seed=2)
    assert [e["seed"] for e in together.restarts] == [2, 3, 4, 5]
    for restart, entry in enumerate(together.restarts):
        model = GaussianMixture(3)
        torch.manual_seed(entry["seed"])
        model.initialize_restart(restart, iris)
        model.initialize = lambda x: None  # type: ignore[method-assign]
        alone = fit_em(model, iris)
        assert entry["bound"] == pytest.approx(alone.results["bound"], abs=1e-9)
        assert entry["steps"] == alone.results["steps"]
    best = max(e["bound"] for e in together.restarts)
    assert together.results["bound"] == best
    assert together.results["log_evidence"] == pytest.approx(best, abs=1e-6)


def test_restarts_begin_differently_and_reach_the_optimum_that_k_means_misses() -> None:
    draw = torch.Generator().manual_seed(0)
    z = (torch.arange(300) % 2).double()
    x = torch.randn(300, 2, generator=draw) * torch.tensor([5.0, 0.3])
    x[:, 1] += 2 * z  # two parallel, elongated clusters
    x[:, 1] += x[:, 0]  # in standardized columns too
    known = GaussianMixture(2, covariance="tied")
    known.infer_sizes(x)
    known.maximize(x, torch.stack([1 - z, z], 1))
    optimum = known.log_likelihood(x).mean().item()
    run = fit_em(GaussianMixture(2, covariance="tied"), x, restarts=5)
    assert run.results["bound"] == pytest.approx(optimum, abs=1e-2)
    for restart in (0, 4):  # the wrong twin: k-means alone
        assert run.restarts[restart]["bound"] < optimum - 0.3


@pytest.mark.slow
def test_hmm_restarts_find_volatility_regimes() -> None:
    draw = torch.Generator().manual_seed(0)
    state = torch.zeros(700, dtype=torch.long)
    for t in range(1, 700):
        moves = torch.rand((), generator=draw) < 0.03
        state[t] = torch.randint(3, (), generator=draw) if moves else state[t - 1]
    x = torch.tensor([1.0, 2.5, 7.0])[state] * torch.randn(700, generator=draw)
    run = fit_em(HiddenMarkovModel(3), x[None], restarts=4, tolerance=1e-2)
    model: Any = run.model
    order = model.scale.flatten().argsort().argsort()
    path, _ = model.viterbi(x[None])
    accuracy = (order[path[0]] == state).double().mean().item()
    assert accuracy > 0.9, accuracy
    assert run.results["bound"] > run.restarts[0]["bound"] + 10  # nats of the series


def test_diagnose_does_not_call_the_agreement_of_equal_restarts_good(iris: Tensor) -> None:
    class Equal(GaussianMixture):
        def initialize_restart(self, restart: int, x: Tensor) -> None:
            torch.manual_seed(0)
            super().initialize_restart(0, x)

    run = fit_em(Equal(2), iris, restarts=3, max_iterations=60)
    result = monotone_convergence(run.history, eligible_restarts(run.restarts))
    assert result.findings()[1].verdict == "unknown"
    agreement = monotone_convergence(
        run.history, Restarts((-1.0, -1.0), initial_bounds=(-3.0, -2.0))
    )
    assert agreement.findings()[1].verdict == "good"


def test_fit_em_does_not_change_the_model_of_the_caller(iris: Tensor) -> None:
    model = GaussianMixture(3, observed=4)
    before = model.means.detach().clone()
    fit_em(model, iris, max_iterations=3)
    assert torch.equal(model.means, before)


class _Swapped(GaussianMixture):
    """A wrong twin: the weights of the components are exchanged."""

    def m_step(self, state: dict[str, Tensor], statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        updated = super().m_step(state, statistics)
        return {**updated, "weights": updated["weights"].flip(0)}


class _Averaged(GaussianMixture):
    """A wrong twin: its statistics are means over a batch, not sums."""

    def e_step(self, state: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        statistics, log_likelihood = super().e_step(state, x)
        return {name: t / len(x) ** 2 for name, t in statistics.items()}, log_likelihood


@pytest.mark.parametrize("wrong", [_Swapped, _Averaged])
def test_em_raises_if_a_wrong_step_lowers_the_likelihood(iris: Tensor, wrong: Any) -> None:
    with pytest.raises(NotMonotoneError, match=r"fell by .* nats per row at iteration \d+"):
        fit_em(wrong(3), iris, batch_size=149)


def test_fit_em_rejects_a_model_without_the_two_steps(iris: Tensor) -> None:
    with pytest.raises(ValueError, match="VAE does not offer expectation-maximization: it needs"):
        fit_em(VAE(likelihood="gaussian"), iris.float())


@pytest.mark.parametrize("option", ["max_iterations", "restarts"])
def test_fit_em_rejects_counts_below_one(iris: Tensor, option: str) -> None:
    options: dict[str, Any] = {option: 0}
    with pytest.raises(ValueError, match=f"{option}=0 is too small. Pass a whole number"):
        fit_em(GaussianMixture(3), iris, **options)


def test_em_run_is_saved_and_loaded(iris: Tensor, tmp_path: Path) -> None:
    run = fit_em(GaussianMixture(3), iris, directory=tmp_path / "run", restarts=2)
    loaded = load_run(tmp_path / "run")
    assert loaded.results["bound"] == run.results["bound"]
    for name, value in run.parameters().items():
        torch.testing.assert_close(loaded.parameters()[name], value)
    assert (tmp_path / "run" / "pictures").is_dir()
    with pytest.raises(ValueError, match="holds a run already"):
        fit_em(GaussianMixture(3), iris, directory=tmp_path / "run")


def _bounds_of_sequences(x: Tensor) -> list[float]:
    """Bounds of two restarts of two models: a sum of one does not depend on θ."""
    bounds = []
    for model in (HiddenMarkovModel(2), LinearStateSpace(1)):
        run = fit_em(model, x.view(30, 5, 4), seed=1, restarts=2, max_iterations=5)
        bounds += [entry["bound"] for entry in run.restarts]
    return bounds


def _fit_share_of_rows(folder: str) -> None:
    torch.set_default_dtype(torch.float64)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    x = torch.tensor(load_iris().data)
    run = fit_em(GaussianMixture(3), x, seed=1, batch_size=40)
    online = fit_em(GaussianMixture(3), x, seed=1, decay=0.6, max_iterations=2, batch_size=149)
    bounds = [*run.history["bound"], *online.history["bound"], *_bounds_of_sequences(x)]
    np.save(f"{folder}/{rank}.npy", np.array(bounds))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.xdist_group("forked")
def test_em_in_two_processes_equals_em_in_one(iris: Tensor, tmp_path: Path) -> None:
    assert exit_statuses(start_processes(2, _fit_share_of_rows, str(tmp_path))) == [0, 0]
    alone = fit_em(GaussianMixture(3), iris, seed=1).history["bound"]
    # the last mini-batch has one row, so the second process has none
    online = fit_em(GaussianMixture(3), iris, seed=1, decay=0.6, max_iterations=2, batch_size=149)
    alone += online.history["bound"] + _bounds_of_sequences(iris)
    for rank in range(2):
        assert np.load(tmp_path / f"{rank}.npy").tolist() == pytest.approx(alone, abs=1e-10)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_em_memory_is_linear_in_rows_components_and_columns(covariance: str) -> None:
    N, K, P = 200, 5, 8
    model, x = GaussianMixture(K, covariance=covariance), torch.randn(N, P)
    model.initialize(x)
    state = model.em_state()
    with torch.no_grad(), LargestTensor() as largest:
        model.m_step(state, model.e_step(state, x)[0])
    assert largest.elements <= N * K * P
    assert N * K * P < N * K * P * P  # of one matrix per row and component


@pytest.mark.slow
@pytest.mark.parametrize("decay", [None, 0.6])
def test_interrupted_em_resumes_to_equal_results(
    iris: Tensor, tmp_path: Path, decay: float | None, monkeypatch: Any
) -> None:
    options: dict[str, Any] = {"settings": {"components": 3}, "restarts": 2, "validation": 30}
    options |= {"decay": decay, "max_iterations": 9, "checkpoint_seconds": 0.0, "batch_size": 50}
    whole = fit_em(GaussianMixture, iris, directory=tmp_path / "whole", **options)
    save, count = save_checkpoint, 0

    def interrupt(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(ppl_lvm.training.iterate, "save_checkpoint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit_em(GaussianMixture, iris, directory=tmp_path / "interrupted", **options)
    monkeypatch.undo()
    other = {**options, "max_iterations": 8}
    with pytest.raises(ValueError, match="options differs in max_iterations"):
        fit_em(GaussianMixture, iris, directory=tmp_path / "interrupted", resume=True, **other)
    resumed = fit_em(
        GaussianMixture, iris, directory=tmp_path / "interrupted", resume=True, **options
    )
    assert resumed.history == whole.history
    for name, value in whole.parameters().items():
        assert torch.equal(resumed.parameters()[name], value)
    again = fit_em(
        GaussianMixture, iris, directory=tmp_path / "interrupted", resume=True, **options
    )
    assert again.results["bound"] == whole.results["bound"]


def test_held_out_likelihood_is_exact_and_selects_the_restart(iris: Tensor) -> None:
    run = fit_em(GaussianMixture, iris, settings={"components": 4}, restarts=4, validation=0.2)
    model: Any = run.model
    train, held_out = load_data(iris).split(0.2, 0)
    assert run.results["bound"] == pytest.approx(
        model.log_likelihood(*train.tensors).mean().item(), abs=1e-7
    )
    assert run.results["held_out"] == pytest.approx(
        model.log_likelihood(*held_out.tensors).mean().item(), abs=1e-7
    )
    assert len(run.history["validation_bound"]) == len(run.history["bound"])
    sound = [e for e in run.restarts if e["degenerate"] is None]
    assert run.results["held_out"] == max(e["held_out"] for e in sound)


def test_initialization_does_not_depend_on_given_sizes(iris: Tensor) -> None:
    for sized, unsized in ((GaussianMixture(3, 4), GaussianMixture(3)), (PPCA(2, 4), PPCA(2))):
        for model in (sized, unsized):
            torch.manual_seed(1)
            model.initialize(iris)
        for name, value in sized.em_state().items():
            assert torch.equal(unsized.em_state()[name], value)
