"""Heywood cases: factor analysis whose maximum lacks noise.

EM approaches a noise of 0 at a sublinear rate, so it stops far from it. The likelihood maximized
over W is a function of ψ alone,

    f(ψ) = Σ_{j > D} (λ_j - log λ_j) + constant,    λ_1 ≥ λ_2 ≥ … eigenvalues of ψ^-½ S ψ^-½,

twice the negative log-likelihood of a row, with gradient diag(W Wᵀ + ψ - S) / ψ². A bounded
quasi-Newton method finds its minimum near a fitted ψ.

Rows with missing values have no such profile: there it minimizes over W, μ and ψ. The n rows of a
pattern of present columns O with Σ = W_O W_Oᵀ + ψ_O, mean x̄ and deviations with Σ_i e_i e_iᵀ = RᵀR
contribute

    n log det Σ + n (x̄ - μ)ᵀ Σ⁻¹ (x̄ - μ) + Σ_j r_jᵀ Σ⁻¹ r_j,    r_j the |O| rows of R.

Reference:
    Lawley, Maxwell (1971). Factor analysis as a statistical method. Chapter 4.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ppl_lvm.models.parts.factors.linear_gaussian import State, posterior

# Share of a column's variance at which its noise counts as 0.
LEAST_SHARE = 1e-4
# Most multiplications of one likelihood of incomplete rows: a fraction of a second.
MOST_PRODUCTS = 20_000_000


def columns_without_noise(S: Tensor, noise: Tensor, latent: int) -> list[int]:
    """Columns whose noise goes to 0 on the path from `noise` (P,) to the nearest maximum.

    Args:
        S: covariance (P, P) of complete rows; without full rank the result is empty.
        noise: fitted ψ. Noises below `LEAST_SHARE` of the variance already are left out.
        latent: D.
    """
    variance = S.diagonal()
    scale = variance.rsqrt()
    R = (S * scale[:, None] * scale).numpy()  # in shares of the variances
    share = (noise / variance).numpy()
    if latent >= len(R) or not np.linalg.eigvalsh(R)[0] > 1e-9:
        return []

    def profile(u: np.ndarray) -> tuple[float, np.ndarray]:
        values, vectors = np.linalg.eigh(R / np.sqrt(u) / np.sqrt(u)[:, None])
        rest = values[:-latent]  # ascending
        strength = np.clip(values[-latent:] - 1, 0, None)
        W = np.sqrt(u)[:, None] * vectors[:, -latent:] * np.sqrt(strength)
        gradient = ((W**2).sum(1) + u - R.diagonal()) / u**2
        return float((rest - np.log(rest)).sum()), gradient

    return _reached(profile, share)


def columns_without_noise_of_incomplete(x: Tensor, state: State) -> list[int]:
    """Columns whose noise goes to 0 on the path from θ = `state` to the nearest maximum.

    Args:
        x: rows (N, P), in doubles, NaN where a value is missing.
        state: W (P, D), mu (P,) and noise (P,).

    Raises:
        ValueError: for more patterns of missing values than it can afford.
    """
    mean, (P, D) = x.nanmean(0), state["W"].shape
    scale = (x - mean).square().nanmean(0).sqrt()
    rows, weight = _compressed((x - mean) / scale)
    if (products := rows.numel() * D**2) > MOST_PRODUCTS:
        raise ValueError(
            f"the {len(x)} rows have too many patterns of missing values: {products:.0e} products "
            f"for each of some hundred likelihoods, and at most {MOST_PRODUCTS:.0e} are affordable"
        )
    share = state["noise"] / scale**2

    @torch.enable_grad()
    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        """Twice the negative log-likelihood of a row, of (W, μ, ψ)."""
        leaf = torch.from_numpy(values).requires_grad_()
        W, mu, u = leaf.split([P * D, P, P])
        theta = {"W": W.view(P, D), "mu": mu, "noise": u}
        value = _minus_twice_log_likelihood(theta, rows, weight) / len(x)
        return value.item(), torch.autograd.grad(value, leaf)[0].numpy()

    W, mu = state["W"] / scale[:, None], (state["mu"] - mean) / scale
    return _reached(loss, share.numpy(), torch.cat([W.flatten(), mu]).numpy())


def _reached(
    loss: Callable[[np.ndarray], tuple[float, np.ndarray]],
    share: np.ndarray,
    free: np.ndarray | None = None,
) -> list[int]:
    """Columns whose share of noise the minimization of `loss` over (`free`, `share`) takes to 0."""
    least = np.where(share > LEAST_SHARE, LEAST_SHARE, 0.1 * share)
    start = share if free is None else np.concatenate([free, share])
    bounds = [(None, None)] * (len(start) - len(share)) + [(low, None) for low in least]
    options = {"maxiter": 2000, "ftol": 1e-16, "gtol": 1e-9, "maxcor": 50}
    first = loss(start)[0]
    end, lowest = start, first
    for _ in range(5):  # a line search that fails early ends the method before the minimum
        result = minimize(loss, end, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        if not result.fun < lowest:
            break
        end, lowest = result.x, result.fun
    # The likelihood must rise on the path, and still rise at its end.
    if not lowest < first:
        return []
    reached = (share > LEAST_SHARE) & (end[-len(share) :] <= 1.001 * LEAST_SHARE)
    outward = loss(end)[1][-len(share) :] > 0
    return torch.from_numpy(reached & outward).nonzero().flatten().tolist()


def _compressed(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (M, P) and weights (M,) of the same likelihood, at most |O| + 1 for each pattern O.

    The √n x̄ of a pattern has weight √n, the rows of its R have weight 0, single rows have 1.
    """
    patterns, of, counts = torch.unique(~x.isnan(), dim=0, return_inverse=True, return_counts=True)
    many = counts > patterns.sum(-1) + 1
    single = x[~many[of]]
    rows, weights = [single], [x.new_ones(len(single))]
    for k in many.nonzero().flatten().tolist():
        values = x[of == k][:, patterns[k]]
        mean, root = values.mean(0), counts[k].sqrt().to(x)
        R = torch.linalg.qr(values - mean, mode="r").R
        part = x.new_full((1 + len(R), x.shape[1]), torch.nan)
        part[:, patterns[k]] = torch.cat([root * mean[None], R])
        rows.append(part)
        weights.append(torch.cat([root[None], x.new_zeros(len(R))]))
    return torch.cat(rows), torch.cat(weights)


def _minus_twice_log_likelihood(theta: State, rows: Tensor, weight: Tensor) -> Tensor:
    """-2 log p(x), without its constant, of the rows that `_compressed` returns."""
    W, noise, seen = theta["W"], theta["noise"], ~rows.isnan()
    d = rows - weight[:, None] * theta["mu"]
    mean, L = posterior({**theta, "mu": torch.zeros_like(noise)}, d)
    rest = torch.where(seen, d - mean @ W.mT, 0.0)
    log_det = 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1) + seen.to(W) @ noise.log()
    return (rest.square() / noise).sum() + mean.square().sum() + weight.square() @ log_det
