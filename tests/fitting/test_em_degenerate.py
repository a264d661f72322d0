"""EM with components that collapse, floors and non-finite values."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_lvm import fit_em
from ppl_lvm.data import load_data
from ppl_lvm.models import PPCA, MixtureOfPPCA
from ppl_lvm.models.gmm import COVARIANCES, GaussianMixture
from ppl_lvm.training.em.batch import EM

pytestmark = pytest.mark.usefixtures("doubles")


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_component_without_rows_keeps_its_mean(covariance: str) -> None:
    x = torch.randn(40, 2)
    model = GaussianMixture(2, covariance=covariance)
    model.initialize(x)
    state = model.em_state()
    state["means"][1] = 1e6
    updated = model.m_step(state, model.e_step(state, x)[0])
    assert updated["weights"].tolist() == [1.0, 0.0]
    torch.testing.assert_close(updated["means"][0], x.mean(0), atol=1e-7, rtol=1e-6)
    assert torch.equal(updated["means"][1], state["means"][1])
    again, log_likelihood = model.e_step(updated, x)
    assert torch.isfinite(log_likelihood)
    assert all(torch.isfinite(t).all() for t in again.values())


def test_variance_floor_holds_and_the_likelihood_does_not_fall() -> None:
    x = torch.cat([torch.randn(40, 2), torch.tensor([[3.0, 3.0]]).repeat(5, 1)])
    run = fit_em(GaussianMixture(3, floor=1e-4), x, restarts=3, max_iterations=200)
    model: Any = run.model
    s = x.std(0, correction=0)  # the floor is a share of the columns' variances
    least = torch.linalg.eigvalsh(model.covariance_matrix / (s[:, None] * s))[:, 0].min().item()
    assert least == pytest.approx(2e-4, rel=1e-6)
    assert run.results["degenerate"] is None or all(e["degenerate"] for e in run.restarts)


def test_em_names_the_iteration_of_a_non_finite_likelihood(iris: Tensor) -> None:
    model = GaussianMixture(2)
    model.initialize(iris)
    state = {k: t[None].clone() for k, t in model.em_state().items()}
    state["means"][0, 0, 0] = torch.nan
    em = EM(model, load_data(iris), state)
    with pytest.raises(ValueError, match="log-likelihood is nan at iteration 1"):
        em.run(2)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_em_converges_from_initial_variances_at_the_floor(covariance: str) -> None:
    """In single precision they were a rounding error below it, and the first step lowered L."""
    torch.set_default_dtype(torch.float32)
    x = torch.randn(6, 3)
    for model in (GaussianMixture(6, covariance=covariance), MixtureOfPPCA(6, 1)):
        run = fit_em(model, x)
        assert run.results["converged"]
        assert "has collapsed: " in run.results["degenerate"]


def test_only_the_degenerate_restart_ends_if_rounding_decides() -> None:
    x = torch.randn(60, 2) + 6 * (torch.arange(60)[:, None] < 30)
    x[:5] = x[5].clone()  # five equal rows: a component of the first restart
    model, states = GaussianMixture(2, observed=2), []
    for rows in (5, 30):
        member = (torch.arange(60) < rows).long()
        model.maximize(x, torch.nn.functional.one_hot(member, 2))
        states.append(model.em_state())
    state = {name: torch.stack([s[name] for s in states]) for name in states[0]}
    em = EM(model, load_data(x), state, tolerance=1e-9)
    em._judge = _with_a_fall(em)  # type: ignore[method-assign]
    em.run(200)
    assert em.degenerate == [0]
    assert em.converged == [False, True]
    assert len(em.bounds[0]) == 3


def test_fit_em_reports_a_degenerate_fit_of_dependent_columns_without_raising() -> None:
    """A column is the sum of others, in thousands.

    Rounding decides whether the likelihood falls, so `converged` may be either: processors differ.
    """
    torch.set_default_dtype(torch.float32)
    parts = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    x = 1e6 * torch.cat([parts, parts.sum(1, keepdim=True)], 1)
    for model in (GaussianMixture(2), MixtureOfPPCA(2, 2), PPCA(2)):
        run = fit_em(model, x)
        assert run.results["degenerate"] is not None


def _with_a_fall(em: EM) -> Any:
    """Judge the third bound of the first restart as lower than rounding explains."""
    judge = em._judge

    def judged(r: int, bound: float, state: dict[str, Tensor]) -> None:
        judge(r, bound - (r == 0 and len(em.bounds[0]) == 2), state)

    return judged


def test_most_likely_restart_is_not_chosen_if_it_is_degenerate() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(60, 2, generator=draw)
    x[:8] = x[8] + torch.tensor([2.5, 0.0])  # eight equal rows
    x[30:, 1] += 3
    run = fit_em(GaussianMixture(2), x, restarts=6)
    best = max(run.restarts, key=lambda entry: entry["bound"])
    assert best["degenerate"] is not None
    assert not best["chosen"]
    sound = [entry["bound"] for entry in run.restarts if entry["degenerate"] is None]
    assert run.results["degenerate"] is None
    assert run.results["bound"] == max(sound)
