"""Forward-backward algorithm and Baum-Welch steps of hidden Markov models.

With b_t(s) = p(x_t | z_t = s), over the values that are present, a sequence of T steps has

    α_t(j) = p(z_t = j, x_1, …, x_t) = b_t(j) Σ_i α_{t-1}(i) A_ij,           α_1 = π b_1,
    β_t(i) = p(x_{t+1}, …, x_T | z_t = i) = Σ_j A_ij b_{t+1}(j) β_{t+1}(j),    β_T = 1,
    γ_t(s) = p(z_t = s | x) = α_t(s) β_t(s) / p(x),                           p(x) = Σ_s α_T(s),
    ξ_t(i, j) = p(z_t = i, z_{t+1} = j | x) = α_t(i) A_ij b_{t+1}(j) β_{t+1}(j) / p(x).

The E-step sums over sequences Σ γ_1, Σ_t ξ_t, and for every state s and column p, over the present
values, with u = (x_p - μ_sp) / σ_sp,

    rows = Σ γ,  shift = Σ γ u,  scatter = Σ γ u²;    counts_c = Σ γ [x_p = c] of categories.

The M-step is π ∝ Σ γ_1, A_i ∝ Σ ξ_i, θ ∝ counts, and with ū = shift / rows

    μ' = μ + σ ū,    σ'² = σ² (scatter / rows - ū²), at least the floor.

A chain ends at its last observed step: expectations after it carry no information on A and would
slow convergence. A missing step in between counts.

θ is {"start": π (S,), "transition": A (S, S)} with {"means": μ, "variance": σ²} (S, P) or
{"table": θ (S, P, C)}. Nothing branches on its values, so `torch.vmap` can batch restarts.

References:
    Baum, Petrie, Soules, Weiss (1970). A maximization technique occurring in the statistical
    analysis of probabilistic functions of Markov chains.
    Rabiner (1989). A tutorial on hidden Markov models. Equations 37 and 40.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.models.parts.state_space.sequences import active_steps

# Entries of the largest tensor of a block of sequences.
BLOCK_NUMBERS = 2**21

State = dict[str, Tensor]


def log_emission(state: State, x: Tensor) -> Tensor:
    """log b of sequences `x` (N, T, P), NaN where a value is missing: (N, T, S)."""
    seen = ~x.isnan().unsqueeze(-2)  # (N, T, 1, P)
    if "table" in state:
        log_table = state["table"].log().movedim(0, -1)  # (P, C, S)
        columns = torch.arange(x.shape[-1], device=x.device)
        each = log_table[columns, x.nan_to_num(0.0).long()].mT  # (N, T, S, P)
    else:
        constant = 0.5 * (2 * math.pi * state["variance"]).log()
        each = -0.5 * _residuals(state, x).square() - constant
    return torch.where(seen, each, 0.0).sum(-1)


def _residuals(state: State, x: Tensor) -> Tensor:
    """u (N, T, S, P), arbitrary where a value is missing."""
    return (x.nan_to_num(0.0).unsqueeze(-2) - state["means"]) / state["variance"].sqrt()


def forward(log_start: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
    """log α (N, T, S)."""
    alpha = [log_start + log_b[:, 0]]
    for t in range(1, log_b.shape[1]):
        alpha.append((alpha[-1].unsqueeze(-1) + log_a).logsumexp(-2) + log_b[:, t])
    return torch.stack(alpha, 1)


def backward(log_a: Tensor, log_b: Tensor) -> Tensor:
    """log β (N, T, S)."""
    beta = [torch.zeros_like(log_b[:, 0])]
    for t in range(log_b.shape[1] - 1, 0, -1):
        ahead = (log_b[:, t] + beta[-1]).unsqueeze(-2)  # (N, 1, S)
        beta.append((log_a + ahead).logsumexp(-1))
    return torch.stack(beta[::-1], 1)


def expect(state: State, x: Tensor) -> tuple[State, Tensor]:
    """The sums over sequences `x` (N, T, P), and Σ_n log p(x_n).

    start (S,), moves (S, S), and rows, shift, scatter (S, P) or counts (S, P, C).
    """
    (_, T, P), S = x.shape, len(state["start"])
    total: dict[str, Any] = {}
    log_likelihood: Any = 0.0
    for block in x.split(max(1, BLOCK_NUMBERS // (T * S * max(S, P)))):
        log_a, log_b = state["transition"].log(), log_emission(state, block)
        alpha, beta = forward(state["start"].log(), log_a, log_b), backward(log_a, log_b)
        log_p = alpha[:, -1].logsumexp(-1)
        gamma = (alpha + beta - log_p[:, None, None]).exp()  # (N, T, S)
        active = active_steps(block).to(gamma)  # (N, T)
        sums = {
            "start": active[:, 0] @ gamma[:, 0],
            "moves": _moves(alpha, beta + log_b, log_a, log_p, active),
            **_emitted(state, block, gamma),
        }
        log_likelihood = log_likelihood + log_p.sum()
        total = {name: total.get(name, 0.0) + t for name, t in sums.items()}
    return total, log_likelihood


def _moves(alpha: Tensor, ahead: Tensor, log_a: Tensor, log_p: Tensor, active: Tensor) -> Tensor:
    """Σ_t ξ_t (S, S), up to the end of each chain; `ahead` is log b β (N, T, S)."""
    joint = alpha[:, :-1, :, None] + log_a + ahead[:, 1:, None, :]  # (N, T - 1, S, S)
    xi = (joint - log_p[:, None, None, None]).exp()
    return torch.einsum("nt,ntij->ij", active[:, 1:], xi)


def _emitted(state: State, x: Tensor, gamma: Tensor) -> State:
    """Emission sums of the states: rows, shift and scatter, or counts."""
    seen = (~x.isnan()).to(gamma)
    if "table" in state:
        category = torch.nn.functional.one_hot(
            x.nan_to_num(0.0).long(), state["table"].shape[-1]
        ).to(gamma)
        return {"counts": torch.einsum("nts,ntp,ntpc->spc", gamma, seen, category)}
    r = gamma.unsqueeze(-1) * seen.unsqueeze(-2)  # (N, T, S, P)
    u = _residuals(state, x)
    return {
        "rows": r.sum((0, 1)),
        "shift": (r * u).sum((0, 1)),
        "scatter": (r * u.square()).sum((0, 1)),
    }


def maximize(state: State, statistics: State, least: Tensor | None) -> State:
    """θ' from the sums of `expect`; no variance is below `least` (P,), None for categories.

    The parameters of a state that was never visited, or never left, stay as they are.
    """
    new = {
        "start": _shares(statistics["start"], state["start"]),
        "transition": _shares(statistics["moves"], state["transition"]),
    }
    if "table" in state:
        return {**new, "table": _shares(statistics["counts"], state["table"])}
    means, variance, rows = state["means"], state["variance"], statistics["rows"]
    positive = rows.clamp(min=torch.finfo(rows.dtype).tiny)
    mean = statistics["shift"] / positive
    spread = variance * (statistics["scatter"] / positive - mean.square())
    return {
        **new,
        "means": means + variance.sqrt() * mean,
        "variance": torch.where(rows > 0, spread.clamp(min=least), variance),
    }


def _shares(counts: Tensor, old: Tensor) -> Tensor:
    """Counts over their sum, along the last dimension; `old` where the sum is 0."""
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp(min=torch.finfo(total.dtype).tiny), old)


def transport_statistics(state: State, new: State, statistics: State) -> State:
    """The sums of `expect` at θ, expressed at θ', where u' = (σ u + μ - μ') / σ'."""
    if "table" in state:
        return statistics
    scale = new["variance"].sqrt()
    a, c = state["variance"].sqrt() / scale, (state["means"] - new["means"]) / scale
    rows, m = statistics["rows"], a * statistics["shift"]
    scatter = a.square() * statistics["scatter"] + 2 * m * c + rows * c.square()
    return {**statistics, "shift": m + rows * c, "scatter": scatter}
