"""Kalman smoother against the dense normal; EM against SVI."""

from itertools import pairwise
from typing import Any

import pyro
import pytest
import torch
from incomplete_sequences import incomplete_sequences
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from ppl_lvm import NotMonotoneError, fit_em
from ppl_lvm.data import load_data
from ppl_lvm.models.linear_state_space import LinearStateSpace
from ppl_lvm.models.parts.state_space import kalman

D, P, T, N = 2, 3, 5, 5


pytestmark = pytest.mark.usefixtures("doubles")


def _state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "A": 0.5 * torch.randn(D, D),
        "C": torch.randn(P, D),
        "mu": torch.randn(P),
        "drift": torch.rand(D) + 0.2,
        "noise": torch.rand(P) + 0.2,
    }


def _data() -> Tensor:
    return incomplete_sequences(N, P, missing_step=0)


def _dense(state: dict[str, Tensor], sequence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E[z], cov[z] of z_0, …, z_L stacked, L the last observed step, and log p(x)."""
    steps = (~sequence.isnan()).any(1).nonzero()
    L = int(steps[-1]) + 1 if len(steps) else 0
    move = torch.eye((L + 1) * D)  # z = move @ noise, from z_t = A z_{t-1} + noise_t
    for t in range(1, L + 1):
        here, before = slice(t * D, (t + 1) * D), slice((t - 1) * D, t * D)
        move[here] += state["A"] @ move[before]
    noise = torch.cat([torch.ones(D), state["drift"].repeat(L)]).diag()
    zz = move @ noise @ move.mT
    C = torch.zeros(L * P, (L + 1) * D)
    for t in range(L):
        C[t * P : (t + 1) * P, (t + 1) * D : (t + 2) * D] = state["C"]
    x = sequence[:L].flatten()
    o = ~x.isnan()
    zx = (zz @ C.mT)[:, o]
    xx = (C @ zz @ C.mT + state["noise"].repeat(L).diag())[o][:, o]
    d = (x - state["mu"].repeat(L))[o]
    gain = torch.linalg.solve(xx, zx.mT).mT
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(d)), xx) if len(d) else None
    log_p = torch.zeros(()) if normal is None else normal.log_prob(d)
    return gain @ d, zz - gain @ zx.mT, log_p


def _expected_joint(state: dict[str, Tensor], new: dict[str, Tensor], x: Tensor) -> Tensor:
    """E[log p(x, z | θ')] under p(z | x, θ), from the dense posterior, up to a constant.

    θ' is of the larger model: z_0 ~ N(0, new["first"]), and new["Q"] is any matrix.
    """
    total = torch.zeros(())
    for sequence in x:
        m, V, _ = _dense(state, sequence)
        second = (V + torch.outer(m, m)).detach()
        at = [slice(t * D, (t + 1) * D) for t in range(len(m) // D)]
        if len(at) > 1:
            total = total + _normal(second[at[0], at[0]], new["first"])
        for before, here in pairwise(at):
            A = new["A"]
            error = second[here, here] - A @ second[before, here] - second[here, before] @ A.mT
            total = total + _normal(error + A @ second[before, before] @ A.mT, new["Q"])
        for row, here in zip(sequence, at[1:], strict=False):
            for p in (~row.isnan()).nonzero().flatten().tolist():
                c, d = new["C"][p], row[p] - new["mu"][p]
                square = d**2 - 2 * d * (c @ m[here]) + c @ second[here, here] @ c
                total = total - 0.5 * (square / new["noise"][p] + new["noise"][p].log())
    return total


def _normal(second: Tensor, covariance: Tensor) -> Tensor:
    """E[log N(e; 0, covariance)] of e with E[e eᵀ] = second, up to a constant."""
    return -0.5 * (torch.linalg.solve(covariance, second).trace() + covariance.logdet())


def _without_covariance(state: Any, x: Tensor, known: kalman.Smoothed) -> Any:
    """The wrong twin: neighbors as independent given x."""
    return _SUMS(state, x, known._replace(across=torch.zeros_like(known.across)))


_SUMS = kalman._sums


def test_kalman_m_step_maximizes_the_expected_likelihood(monkeypatch: Any) -> None:
    state, x = _state(), _data()

    def slope(statistics: dict[str, Tensor]) -> float:
        new = kalman.maximize(state, statistics, 1e-6, 1e-8)
        M = kalman._moves(statistics)[2]
        new |= {"A": M @ new["A"] @ M.inverse(), "C": new["C"] @ M.inverse()}  # as before z = M z'
        new |= {"first": M @ M.mT, "Q": M @ new.pop("drift").diag() @ M.mT}
        new = {name: t.requires_grad_() for name, t in new.items()}
        slopes = torch.autograd.grad(_expected_joint(state, new, x), list(new.values()))
        return max(float(s.abs().max()) for s in slopes)

    statistics, log_likelihood = kalman.expect(state, x)
    assert float(log_likelihood) == pytest.approx(
        sum(float(_dense(state, sequence)[2]) for sequence in x), abs=1e-9
    )
    assert slope(statistics) < 1e-8
    monkeypatch.setattr(kalman, "_sums", _without_covariance)
    assert slope(kalman.expect(state, x)[0]) > 0.1


def test_kalman_sums_equal_the_dense_posterior() -> None:
    state, x = _state(), _data()
    exact = {"before": torch.zeros(D, D), "across": torch.zeros(D, D), "after": torch.zeros(D, D)}
    exact["first"] = torch.zeros(D, D)
    for sequence in x:
        m, V, _ = _dense(state, sequence)
        second = V + torch.outer(m, m)
        for t in range(len(m) // D - 1):
            before, here = slice(t * D, (t + 1) * D), slice((t + 1) * D, (t + 2) * D)
            exact["before"] += second[before, before]
            exact["across"] += second[here, before]
            exact["after"] += second[here, here]
        exact["first"] += second[:D, :D] if len(m) > D else 0.0
    result, _ = kalman.expect(state, x)
    for name, value in exact.items():
        torch.testing.assert_close(result[name], value, rtol=0, atol=1e-9)
    assert result["steps"] == T + 3 + T + T + 0
    assert result["rows"].sum() == (~x.isnan()).sum()


def test_kalman_transported_sums_equal_fresh_sums() -> None:
    state, x = _state(), _data()
    model = LinearStateSpace(D, P)
    statistics, _ = model.e_step(state, x)
    new = model.m_step(state, statistics)
    again = model.m_step(new, model.transport_statistics(state, new, statistics, statistics))
    for name in new:
        torch.testing.assert_close(again[name], new[name], rtol=0, atol=1e-9)
    uncarried = model.m_step(new, statistics)  # the wrong twin
    assert (uncarried["mu"] - new["mu"]).abs().max() > 0.05


def _drawn() -> Tensor:
    """An AR(1) cause behind three columns, a tenth of them missing, some ending early."""
    torch.manual_seed(3)
    z, steps = torch.randn(120, 1), []
    for _ in range(8):
        z = 0.7 * z + 0.5 * torch.randn(120, 1)
        steps.append(z * torch.tensor([2.0, -1.0, 1.0]) + 0.5 * torch.randn(120, 3) + 10)
    x = torch.stack(steps, 1)
    x[torch.rand(x.shape) < 0.1] = torch.nan
    x[::3, 5:] = torch.nan
    return x


@pytest.mark.slow
def test_linear_state_space_em_reaches_the_svi_optimum(monkeypatch: Any) -> None:
    x = _drawn()
    data = load_data(x.numpy(), missing="keep")
    run = fit_em(LinearStateSpace(1), data, tolerance=1e-9)
    bounds = run.history["bound"]
    assert run.results["converged"]
    assert all(b >= a - 1e-11 for a, b in pairwise(bounds))
    model: Any = run.model
    model.log_evidence(x).mean().backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-3
    theirs = LinearStateSpace(1)
    pyro.set_rng_seed(0)
    theirs.initialize(x)
    svi = SVI(theirs, lambda x: None, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(200):
        svi.step(x)
    bound = theirs.log_evidence(x).mean().item()
    assert bound == pytest.approx(run.results["bound"], abs=1e-3)
    assert float(theirs.A.detach()) == pytest.approx(float(model.A.detach()), abs=0.01)
    monkeypatch.setattr(kalman, "_sums", _without_covariance)
    with pytest.raises(NotMonotoneError, match="fell by"):
        fit_em(LinearStateSpace(1), data, tolerance=1e-9)


@pytest.mark.slow
def test_kalman_batches_and_restarts_change_nothing(monkeypatch: Any) -> None:
    data = load_data(_drawn()[:30].numpy(), missing="keep")
    together = fit_em(LinearStateSpace(2), data, restarts=3, max_iterations=4)
    assert len({e["bound"] for e in together.restarts}) == 3
    monkeypatch.setattr(kalman, "BLOCK_NUMBERS", 1)  # one sequence a block
    for r in range(2):
        alone = fit_em(LinearStateSpace(2), data, seed=r, batch_size=20, max_iterations=4)
        assert together.restarts[r]["bound"] == pytest.approx(alone.results["bound"], abs=1e-9)


@pytest.mark.slow
def test_linear_state_space_online_em_gains_more_than_a_few_em_passes() -> None:
    data = load_data(_drawn().numpy(), missing="keep")
    exact = fit_em(LinearStateSpace(1), data, tolerance=1e-5).results["bound"]
    early = fit_em(LinearStateSpace(1), data, max_iterations=7).results["bound"]
    online = fit_em(LinearStateSpace(1), data, decay=0.6, max_iterations=6, batch_size=8)
    assert -1e-3 < exact - online.results["bound"] < 0.5 * (exact - early)
