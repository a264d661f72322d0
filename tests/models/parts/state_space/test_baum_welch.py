"""Baum-Welch against path enumeration, textbook loops, and SVI."""

from itertools import pairwise, product
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from incomplete_sequences import incomplete_sequences
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from ppl_lvm import NotMonotoneError, fit_em
from ppl_lvm.data import load_data
from ppl_lvm.models.hmm import HiddenMarkovModel
from ppl_lvm.models.parts.state_space import baum_welch
from ppl_lvm.training.em.batch import EM

S, T, P, C = 3, 5, 2, 4
EMISSIONS = ("gaussian", "categorical")


pytestmark = pytest.mark.usefixtures("doubles")


def _model(emission: str) -> HiddenMarkovModel:
    torch.manual_seed(0)
    model = HiddenMarkovModel(S, P, emission, C if emission == "categorical" else None)
    model.start = torch.tensor([0.5, 0.3, 0.2])
    rows = torch.rand(S, S) + 0.1
    model.transition = rows / rows.sum(-1, keepdim=True)
    if emission == "gaussian":
        model.scale = torch.rand(S, P) + 0.5
    return model


def _data(emission: str) -> Tensor:
    categories = C if emission == "categorical" else None
    return incomplete_sequences(5, P, missing_step=2, categories=categories)


def _by_every_path(model: HiddenMarkovModel, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The sums over the paths of each sequence up to its last observed step, and Σ log p(x)."""
    state = model.em_state()
    sums: dict[str, Tensor] = {"start": torch.zeros(S), "moves": torch.zeros(S, S)}
    if model.emission == "gaussian":
        sums |= {name: torch.zeros(S, P) for name in ("rows", "shift", "scatter")}
    else:
        sums["counts"] = torch.zeros(S, P, C)
    total = torch.zeros(())
    for sequence in x:
        steps = (~sequence.isnan()).any(1).nonzero()
        length = int(steps[-1]) + 1 if len(steps) else 0
        paths = list(product(range(S), repeat=length)) if length else []
        log_p = [_log_joint(state, path, sequence) for path in paths]
        if not paths:
            continue
        evidence = torch.stack(log_p).logsumexp(0)
        total = total + evidence
        for path, log_joint in zip(paths, log_p, strict=True):
            _count(sums, state, path, sequence, (log_joint - evidence).exp())
    return sums, total


def _emission(state: dict[str, Tensor], s: int, p: int) -> Any:
    if "table" in state:
        return dist.Categorical(state["table"][s, p])
    return dist.Normal(state["means"][s, p], state["variance"][s, p].sqrt())


def _log_joint(state: dict[str, Tensor], path: Any, sequence: Tensor) -> Tensor:
    result = state["start"][path[0]].log()
    for i, j in pairwise(path):
        result = result + state["transition"][i, j].log()
    for s, row in zip(path, sequence, strict=False):
        for p, value in enumerate(row):
            if not value.isnan():
                result = result + _emission(state, s, p).log_prob(value)
    return result


def _count(sums: Any, state: Any, path: Any, sequence: Tensor, weight: Tensor) -> None:
    sums["start"][path[0]] += weight
    for i, j in pairwise(path):
        sums["moves"][i, j] += weight
    for s, row in zip(path, sequence, strict=False):
        for p, value in enumerate(row):
            if value.isnan():
                continue
            if "table" in state:
                sums["counts"][s, p, int(value)] += weight
                continue
            u = (value - state["means"][s, p]) / state["variance"][s, p].sqrt()
            for name, each in (("rows", 1.0), ("shift", u), ("scatter", u * u)):
                sums[name][s, p] += weight * each


def _product_of_marginals(
    alpha: Tensor, ahead: Tensor, log_a: Tensor, log_p: Tensor, lasts: Tensor
) -> Tensor:
    """The wrong twin: γ_t(i) γ_{t+1}(j) in place of ξ_t(i, j)."""
    N, steps, S = alpha.shape
    backward = [torch.zeros(N, S)]
    for t in range(steps - 1, 0, -1):
        backward.append((log_a + ahead[:, t].unsqueeze(-2)).logsumexp(-1))
    gamma = (alpha + torch.stack(backward[::-1], 1)).softmax(-1)
    return torch.einsum("nt,nti,ntj->ij", lasts[:, 1:], gamma[:, :-1], gamma[:, 1:])


@pytest.mark.parametrize("emission", EMISSIONS)
def test_baum_welch_sums_equal_path_enumeration(emission: str, monkeypatch: Any) -> None:
    model, x = _model(emission), _data(emission)
    result, log_likelihood = model.e_step(model.em_state(), x)
    exact, total = _by_every_path(model, x)
    assert result.keys() == exact.keys()
    for name in exact:
        torch.testing.assert_close(result[name], exact[name], rtol=0, atol=1e-10)
    torch.testing.assert_close(log_likelihood, total, rtol=0, atol=1e-10)
    torch.testing.assert_close(log_likelihood, model.log_evidence(x).detach().sum())
    monkeypatch.setattr(baum_welch, "_moves", _product_of_marginals)
    wrong, _ = model.e_step(model.em_state(), x)
    assert float(wrong["moves"].sum()) == pytest.approx(float(exact["moves"].sum()))
    assert (wrong["moves"] - exact["moves"]).abs().max() > 0.05


def _textbook(state: dict[str, Any], sequences: list[Any], least: float) -> dict[str, Any]:
    """One step by Rabiner's scaled recursions, in plain loops."""
    pi, A, mu, var = (state[n].numpy() for n in ("start", "transition", "means", "variance"))
    gammas, moves, first = [], np.zeros((S, S)), np.zeros(S)
    for x in sequences:
        L = len(x)
        b = np.ones((L, S))
        for t, s, p in product(range(L), range(S), range(P)):
            if not np.isnan(x[t, p]):
                z = (x[t, p] - mu[s, p]) ** 2 / var[s, p]
                b[t, s] *= np.exp(-z / 2) / np.sqrt(2 * np.pi * var[s, p])
        a, c, B = np.zeros((L, S)), np.zeros(L), np.ones((L, S))
        for t in range(L):
            a[t] = b[t] * (pi if t == 0 else a[t - 1] @ A)
            c[t] = a[t].sum()
            a[t] /= c[t]
        for t in range(L - 2, -1, -1):
            B[t] = A @ (b[t + 1] * B[t + 1]) / c[t + 1]
        for t in range(L - 1):
            moves += np.outer(a[t], b[t + 1] * B[t + 1] / c[t + 1]) * A
        gammas.append(a * B)
        first += (a * B)[0]
    g, x = np.concatenate(gammas), np.concatenate(sequences)
    means, variance = np.zeros((S, P)), np.zeros((S, P))
    for s, p in product(range(S), range(P)):
        there = ~np.isnan(x[:, p])
        w, v = g[there, s], x[there, p]
        means[s, p] = (w * v).sum() / w.sum()
        variance[s, p] = max((w * (v - means[s, p]) ** 2).sum() / w.sum(), least)
    return {
        "start": first / first.sum(),
        "transition": moves / moves.sum(1, keepdims=True),
        "means": means,
        "variance": variance,
    }


def test_baum_welch_step_equals_the_textbook_loops(monkeypatch: Any) -> None:
    model, x = _model("gaussian"), _data("gaussian") + 100.0
    model.means = model.means.detach() + 100.0
    sequences = [each[: n or T].numpy() for each, n in zip(x[:4], (0, 3, 0, 0), strict=True)]
    state = model.em_state()
    expected = _textbook(state, sequences, 2 * model.floor)
    statistics, _ = model.e_step(state, x)
    for name, value in model.m_step(state, statistics).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-8)
    model.set_em_state(model.m_step(state, statistics))
    for name, value in model.em_state().items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-8)


def _drawn(emission: str, N: int = 40, steps: int = 20) -> Tensor:
    """Sequences of three states that persist, every fifth value missing."""
    draw = np.random.default_rng(0)
    rows = np.array([[0.8, 0.2, 0.0], [0.1, 0.8, 0.1], [0.2, 0.0, 0.8]])
    x = np.zeros((N, steps, P))
    for n in range(N):
        z = int(draw.integers(3))
        for t in range(steps):
            noise = draw.normal(size=P)
            x[n, t] = (z - 1) * np.array([2.0, -1.0]) + noise
            z = int(draw.choice(3, p=rows[z]))
    if emission == "categorical":
        x = np.digitize(x, [-1.5, 0.0, 1.5]).astype(float)
    x[draw.random(x.shape) < 0.2] = np.nan
    x[::4, 13:] = np.nan
    return torch.tensor(x)


def _settings(emission: str) -> dict[str, Any]:
    return {
        "states": S,
        "emission": emission,
        "categories": C if emission == "categorical" else None,
    }


@pytest.mark.parametrize("emission", EMISSIONS)
def test_baum_welch_likelihood_is_monotone_and_ends_at_zero_gradient(emission: str) -> None:
    x = _drawn(emission)
    data = load_data(x.numpy(), missing="keep")
    run = fit_em(HiddenMarkovModel, data, settings=_settings(emission), tolerance=1e-10)
    bounds = run.history["bound"]
    assert all(b >= a - 1e-12 for a, b in pairwise(bounds))
    assert bounds[-1] > bounds[0] + 0.5
    model: Any = run.model
    model.log_evidence(x).mean().backward()
    for parameter in model.parameters():
        assert parameter.grad.abs().max() < 1e-4
    assert model.log_evidence(x).mean().item() == pytest.approx(bounds[-1], abs=1e-9)


@pytest.mark.slow
def test_svi_reaches_the_baum_welch_optimum_and_wrong_counts_do_not(monkeypatch: Any) -> None:
    x = _drawn("gaussian")
    data = load_data(x.numpy(), missing="keep")
    run = fit_em(HiddenMarkovModel, data, settings=_settings("gaussian"), tolerance=1e-9)
    pyro.set_rng_seed(0)
    model = HiddenMarkovModel(S)
    model.initialize(x)
    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(250):
        svi.step(x)
    bound = model.log_evidence(x).mean().item()
    ours: Any = run.model
    order, theirs = ours.means[:, 0].argsort(), model.means[:, 0].argsort()
    # Shares that are zero in truth take Adam long to reach: their logarithm has no end.
    assert bound == pytest.approx(run.results["bound"], abs=0.01)
    assert bound < run.results["bound"]
    torch.testing.assert_close(model.means[theirs], ours.means[order], rtol=0, atol=0.01)
    torch.testing.assert_close(
        model.transition[theirs][:, theirs], ours.transition[order][:, order], rtol=0, atol=0.01
    )
    monkeypatch.setattr(baum_welch, "_moves", _product_of_marginals)
    wrong = fit_em(HiddenMarkovModel, data, settings=_settings("gaussian"), max_iterations=70)
    assert wrong.results["bound"] < bound - 0.2


class _Forgetful(HiddenMarkovModel):
    """A wrong twin: emissions at the old means."""

    def m_step(self, state: dict[str, Tensor], statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**super().m_step(state, statistics), "means": state["means"].flip(0)}


def test_em_detects_a_step_that_lowers_the_likelihood() -> None:
    with pytest.raises(NotMonotoneError, match="fell by"):
        fit_em(_Forgetful(S), load_data(_drawn("gaussian").numpy(), missing="keep"))


@pytest.mark.parametrize("emission", EMISSIONS)
def test_baum_welch_transported_sums_equal_fresh_sums(emission: str) -> None:
    """Sums transported from θ to θ' have θ' as their M-step."""
    model, x = _model(emission), _data(emission)
    state = model.em_state()
    statistics, _ = model.e_step(state, x)
    new = model.m_step(state, statistics)
    again = model.m_step(new, model.transport_statistics(state, new, statistics, statistics))
    for name in new:
        torch.testing.assert_close(again[name], new[name], rtol=0, atol=1e-10)
    uncarried = model.m_step(new, statistics)
    if emission == "gaussian":  # the wrong twin
        assert (uncarried["means"] - new["means"]).abs().max() > 0.05


@pytest.mark.slow
def test_baum_welch_batches_and_restarts_change_nothing(monkeypatch: Any) -> None:
    data = load_data(_drawn("gaussian").numpy(), missing="keep")
    asked: dict[str, Any] = {"settings": _settings("gaussian"), "max_iterations": 6}
    together = fit_em(HiddenMarkovModel, data, restarts=3, **asked)
    monkeypatch.setattr(baum_welch, "BLOCK_NUMBERS", 1)  # one sequence a block
    for r, entry in enumerate(together.restarts):
        model = HiddenMarkovModel(**asked["settings"])
        torch.manual_seed(r)
        model.initialize_restart(r, data.tensors[0])
        model.initialize = lambda x: None  # type: ignore[method-assign]
        alone = fit_em(model, data, batch_size=7, max_iterations=asked["max_iterations"])
        assert entry["bound"] == pytest.approx(alone.results["bound"], abs=1e-10)
    assert together.results["bound"] == max(e["bound"] for e in together.restarts)
    assert together.record["objective"] == "Trace_ELBO"  # no site of the program is enumerated


@pytest.mark.parametrize(
    "emission", ["gaussian", pytest.param("categorical", marks=pytest.mark.slow)]
)
def test_hmm_online_em_approaches_the_optimum_in_a_few_passes(emission: str) -> None:
    x = _drawn(emission, N=400, steps=10)
    data = load_data(x.numpy(), missing="keep")
    asked: dict[str, Any] = {"settings": _settings(emission), "seed": 1}
    exact = fit_em(HiddenMarkovModel, data, tolerance=1e-4, **asked).results["bound"]
    early = fit_em(HiddenMarkovModel, data, max_iterations=7, **asked).results["bound"]
    online = fit_em(
        HiddenMarkovModel, data, decay=0.6, max_iterations=6, batch_size=40, **asked
    ).results["bound"]
    assert -1e-3 < exact - online < 0.5 * (exact - early)  # `early` had 7 E-steps over all rows


def test_baum_welch_keeps_a_state_that_is_never_visited() -> None:
    model, x = _model("gaussian"), _data("gaussian")
    state = model.em_state()
    state["start"] = torch.tensor([0.5, 0.5, 0.0])
    state["transition"][:, 2] = 0.0
    state["transition"] /= state["transition"].sum(-1, keepdim=True)
    statistics, log_likelihood = model.e_step(state, x)
    new = model.m_step(state, statistics)
    assert torch.isfinite(log_likelihood)
    for name in ("transition", "means", "variance"):
        assert torch.equal(new[name][2], state[name][2])
        assert torch.isfinite(new[name]).all()
    model.set_em_state(new)
    assert torch.isfinite(model.log_evidence(x)).all()
    assert new["start"][2] == 0


def test_baum_welch_of_one_step_equals_a_mixture() -> None:
    x = torch.randn(50, 1, 1)
    model = HiddenMarkovModel(2)
    torch.manual_seed(0)
    model.initialize(x.view(10, 5, 1))
    state = {name: t[None] for name, t in model.em_state().items()}
    em = EM(model, load_data(x), state)
    em.run(3)
    assert torch.equal(em.state["transition"], model.em_state()["transition"][None])
    assert em.bounds[0] == sorted(em.bounds[0])


def test_hmm_em_names_a_category_out_of_range() -> None:
    model = _model("categorical")
    with pytest.raises(ValueError, match="the data has 7"):
        model.e_step(model.em_state(), torch.full((3, 2, P), 7.0))


def test_hmm_initialize_is_the_same_with_and_without_sizes() -> None:
    for emission in EMISSIONS:
        x, settings = _drawn(emission), _settings(emission)
        starts = []
        for model in (HiddenMarkovModel(observed=P, **settings), HiddenMarkovModel(**settings)):
            torch.manual_seed(1)
            model.initialize(x)
            starts.append(model.em_state())
        for name, value in starts[0].items():
            assert torch.equal(starts[1][name], value)


@pytest.mark.parametrize("emission", EMISSIONS)
def test_hmm_em_state_probabilities_sum_to_one_in_doubles(emission: str) -> None:
    model = _model(emission).float()
    stored = {name: getattr(model, name).detach().double() for name in ("start", "transition")}
    assert max(float((t.sum(-1) - 1).abs().max()) for t in stored.values()) > 1e-9  # as they are
    state = model.em_state()
    for name in state.keys() & {"start", "transition", "table"}:
        assert (state[name].sum(-1) - 1).abs().max() < 1e-15
    for name, conditioned in stored.items():
        torch.testing.assert_close(state[name], conditioned, rtol=1e-6, atol=0)
