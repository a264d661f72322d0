"""E-step of a Gaussian mixture for several restarts at once.

A Gaussian's log-density is linear in the features φ(y) = (1, y, {y_p y_q}) of a row, so that for R
restarts of K components

    log π_k N(x_n; μ_k, Σ_k) = φ(y_n) · c_k,    c (F, R K),    T = Σ_n φ(y_n) r_n,    T (F, R K),

with y the standardized rows. All restarts share the features, and both products run at the
processor's speed. T gives the moments of u = L⁻¹ (x - μ), which `em.expect` computes directly.

Digits are lost where a component is narrow beside the data: squares of size |y|² ‖Σ⁻¹‖ cancel to
squares of order one. Restarts whose rounding error may exceed `LOST` use `em.expect` one after the
other, and so do rows with missing values.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.models.parts.mixtures import em

State = dict[str, Tensor]

# Largest tolerated rounding error of a row's log-density, in nats.
LOST = 1e-11
# Log-densities in memory at once.
BLOCK_NUMBERS = 2**18


def expect(state: State, x: Tensor, covariance: str) -> tuple[State, Tensor]:
    """The sums of `em.expect` for each restart, restarts first, and log-likelihoods (R,).

    Reads the values of θ: not for `torch.vmap`.
    """
    if x.isnan().any():
        return _one_by_one(state, x, covariance)
    center, unit = x.mean(0), x.std(0, correction=0)
    unit = torch.where(unit > 0, unit, 1.0)
    y = ((x - center) / unit).mT  # (P, N)
    W, log_det = torch.vmap(lambda one: em.whitening(one, covariance))(state)
    W = W * unit
    b = (state["means"] - center) / unit  # (R, K, P)
    exact = _lost(y, W) <= LOST
    if exact.all():
        return _batched(state["weights"], y, b, W, log_det, covariance)
    some, others = exact.nonzero()[:, 0], (~exact).nonzero()[:, 0]
    results = [_one_by_one({name: t[others] for name, t in state.items()}, x, covariance)]
    if len(some):
        weights = state["weights"][some]
        results.append(_batched(weights, y, b[some], W[some], log_det[some], covariance))
    place = torch.cat([others, some]).argsort()
    sums = {name: torch.cat([each[name] for each, _ in results])[place] for name in results[0][0]}
    return sums, torch.cat([log_likelihood for _, log_likelihood in results])[place]


def _lost(y: Tensor, W: Tensor) -> Tensor:
    """Largest rounding error of a row's log-density in nats, for each restart (R,)."""
    narrow = W.square().flatten(2).sum(-1).amax(-1)  # ‖Σ⁻¹‖ at most, (R,)
    return torch.finfo(y.dtype).eps * y.square().sum(0).amax() * narrow


def _one_by_one(state: State, x: Tensor, covariance: str) -> tuple[State, Tensor]:
    R = len(state["means"])
    results = [em.expect({k: t[r] for k, t in state.items()}, x, covariance) for r in range(R)]
    sums = {name: torch.stack([each[name] for each, _ in results]) for name in results[0][0]}
    return sums, torch.stack([log_likelihood for _, log_likelihood in results])


def _batched(
    weights: Tensor, y: Tensor, b: Tensor, W: Tensor, log_det: Tensor, covariance: str
) -> tuple[State, Tensor]:
    """The sums for weights (R, K) and means b (R, K, P), u = W (y - b), y (P, N)."""
    R, K, P = b.shape
    full = covariance in ("full", "tied")
    c = _coefficients(weights, b, W, log_det)  # (K R, F)
    T: Any = 0.0
    log_likelihood: Any = 0.0
    for block in y.split(max(64, BLOCK_NUMBERS // (K * R)), dim=1):
        phi = _features(block, full)  # (F, B)
        log_joint = (c @ phi).unflatten(0, (K, R))  # (K, R, B)
        top = log_joint.amax(0)
        r = log_joint.sub_(top).exp_()
        p = r.sum(0)
        r.div_(p)
        log_likelihood = log_likelihood + (p.log() + top).sum(-1)
        T = T + r.flatten(0, 1) @ phi.mT
    T = T.unflatten(0, (K, R)).transpose(0, 1)  # (R, K, F)
    rows, first = T[..., 0], T[..., 1 : P + 1]
    shift = first - rows[..., None] * b  # Σ r (y - b)
    if not full:
        second = T[..., P + 1 :] - 2 * b * first + rows[..., None] * b.square()
        return {"rows": rows, "shift": shift * W, "scatter": second * W.square()}, log_likelihood
    second = _symmetric(T[..., P + 1 :], P)
    across = first[..., :, None] * b[..., None, :]
    second = second - across - across.mT + rows[..., None, None] * b[..., :, None] * b[..., None, :]
    scatter = W @ second @ W.mT
    if covariance == "tied":
        scatter = scatter.sum(1)
    sums = {"rows": rows, "shift": (W @ shift[..., None]).squeeze(-1), "scatter": scatter}
    return sums, log_likelihood


def _features(y: Tensor, full: bool) -> Tensor:
    """φ (F, B) of rows `y` (P, B): 1, y, and products of all pairs p ≤ q, or of p = q alone."""
    ones = torch.ones_like(y[:1])
    if not full:
        return torch.cat([ones, y, y.square()])
    p, q = torch.triu_indices(len(y), len(y), device=y.device)
    return torch.cat([ones, y, y[p] * y[q]])


def _coefficients(weights: Tensor, b: Tensor, W: Tensor, log_det: Tensor) -> Tensor:
    """c (K R, F): log π - log det L - ½ P log 2π - ½ |W (y - b)|² as a function of φ(y)."""
    P = b.shape[-1]
    constant = weights.log() - log_det - 0.5 * P * math.log(2 * math.pi)
    if W.dim() == 4:
        A = W.mT @ W
        Ab = (A @ b[..., None]).squeeze(-1)
        p, q = torch.triu_indices(P, P, device=b.device)
        squares = A[..., p, q] * torch.where(p == q, -0.5, -1.0)
    else:
        Ab, squares = W.square() * b, -0.5 * W.square()
    constant = constant - 0.5 * (b * Ab).sum(-1)
    return torch.cat([constant[..., None], Ab, squares], -1).transpose(0, 1).flatten(0, 1)


def _symmetric(pairs: Tensor, P: int) -> Tensor:
    """Matrices (…, P, P) from their entries p ≤ q (…, P (P + 1) / 2)."""
    p, q = torch.triu_indices(P, P, device=pairs.device)
    of = torch.empty(P, P, dtype=torch.int64, device=pairs.device)
    of[p, q] = of[q, p] = torch.arange(len(p), device=pairs.device)
    return pairs[..., of]
