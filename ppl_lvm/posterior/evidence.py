"""Importance-weighted log evidence and its errors.

Rows without a global latent are independent given the parameters. With K draws z_k ~ q(z | x_n) and
weights w_nk = p(x_n, z_k) / q(z_k | x_n),

    marginal      L_n = log 1/K Σ_k w_nk ≤ log p(x_n) in expectation,    value = 1/N Σ_n L_n.

Global latents θ make the rows one data set. With S draws θ_s ~ q of the training rows, and
p̂(x_n | θ_s) from fresh draws of the local latents given θ_s,

    joint         log p(x) ≈ log 1/S Σ_s p(θ_s)/q(θ_s) Π_n p̂(x_n | θ_s)    of training rows x,
    predictive    log p(y | x) ≈ log 1/S Σ_s Π_n p̂(y_n | θ_s)              of new rows y,

both divided by the number of rows. Where k̂ of the predictive weights is above 0.7, as for many new
rows, the value is that of each row alone, which `compare` uses:

    pointwise     L_n = log 1/S Σ_s p̂(y_n | θ_s),    value = 1/N Σ_n L_n.

The Monte-Carlo error of a mean of weights follows from the delta method, sd(L)² ≈ cv² / K with
cv² = K Σ_k w̄_k² − 1 and w̄ the normalized weights. It is an error only where their Pareto k̂ is at
most 0.7; otherwise L is a lower bound, too low by an unknown amount, and no error is reported. The
standard error of the mean over rows is sd_n(L_n) / √N; more draws do not lower it.

References:
    Burda, Grosse, Salakhutdinov (2016). https://arxiv.org/abs/1509.00519, equation 8.
    Vehtari et al. (2024). Pareto smoothed importance sampling. https://arxiv.org/abs/1507.02646
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.html_tables import html_facts
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Batch, Floats
from ppl_lvm.particles import PairStructure, analyze_for_particles, log_weights
from ppl_lvm.particles.dependence import FollowDependence
from ppl_lvm.particles.structure import analyze_pair
from ppl_lvm.posterior import psis
from ppl_lvm.posterior.conditional_density import (
    LOCAL_SHARE,
    conditional_densities,
    global_log_prob,
    local_particles,
    predictive_densities,
)
from ppl_lvm.posterior.evidence_text import MEANING, evidence_text
from ppl_lvm.posterior.global_states import draw_globals, global_latents, global_state_sites
from ppl_lvm.posterior.psis import RELIABLE_K_HAT
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.traces import latent_sites

CHUNK = 100_000  # log-weights computed at once: bounds memory, K·B of them
LATENT_VALUES = 20_000_000  # scalars that the guide draws at once, for latents may be wide
MOST_ROWS = 0.5  # share of rows with a higher k̂ above which a value has no error at all

Kind = Literal["marginal", "joint", "predictive", "pointwise"]


@dataclass(frozen=True, repr=False)
class Evidence:
    """An estimate of log p(x), nats per row.

    Attributes:
        value: 1/N Σ_n L_n, log p(x_1…x_N) / N or log p(y_1…y_N | x) / N, by `kind`.
        kind: "marginal": rows are independent given the parameters. "joint": the training rows of
            a model with global latents. "predictive": new rows together given the training rows,
            for a model with global latents. "pointwise": each of them alone, where the weights of
            all of them together are unreliable.
        standard_error: error of the mean of `per_row` over rows; NaN for a joint value, for a
            single row, and where k̂ > 0.7 for most rows.
        monte_carlo_error: error from the draws, by the delta method; NaN where k̂ > 0.7 for a joint
            value. It does not hold for rows with a higher k̂, and is not printed if there are any.
        effective_particles: smallest ESS 1 / Σ_k w̄² behind `value`, out of `num_draws`.
        num_particles: K, the draws asked for; 1 where the value is exact.
        num_draws: weights behind each value: K, or the draws S of the global latents.
        per_row: L_n (N,); of new rows the density of each alone, log p(y_n | x); for a joint value
            that of the whole data set (1,).
        k_hat: Pareto k̂ of the weights behind `per_row`, (N,) or (1,); −inf for equal weights.
        joint_k_hat: k̂ of the weights behind a joint or predictive `value`; else the largest.
        row_by_row: mean of `per_row` over rows, with their weights.
    """

    value: float
    standard_error: float
    monte_carlo_error: float
    effective_particles: float
    num_particles: int
    num_draws: int
    per_row: Tensor
    kind: Kind
    k_hat: Floats
    joint_k_hat: float
    row_by_row: float

    @property
    def share_bad(self) -> float:
        """Share of rows with k̂ > 0.7."""
        return float((self.k_hat > RELIABLE_K_HAT).mean())

    def to_json(self) -> dict[str, Any]:
        """The numbers without those of single rows; NaN where a number is unknown."""
        error = self.monte_carlo_error if self.joint_k_hat <= RELIABLE_K_HAT else math.nan
        return {
            "log_evidence": self.value,
            "log_evidence_kind": self.kind,
            "log_evidence_standard_error": self.standard_error,
            "log_evidence_monte_carlo_error": error,
            "log_evidence_ess": self.effective_particles,
            "log_evidence_k_hat": self.joint_k_hat,
            "log_evidence_share_of_high_k_hat": self.share_bad,
            "log_evidence_row_by_row": self.row_by_row if self.kind == "predictive" else None,
            "log_evidence_draws": self.num_draws,
            "num_particles": self.num_particles,
        }

    def __str__(self) -> str:
        return evidence_text(self.to_json())

    def __repr__(self) -> str:
        return f"<Evidence: {self}>"

    def _repr_html_(self) -> str:
        return html_facts({MEANING[self.kind]: str(self)})


def log_evidence(
    pair: ModelGuidePair,
    *batch: Any,
    num_particles: int = 1000,
    seed: int = 0,
    training: Callable[[], Batch] | None = None,
    weights: Tensor | None = None,
    training_weights: Tensor | None = None,
) -> Evidence:
    """Estimate log p(x) of the rows in `batch` by importance sampling from the guide.

    Enumerated sites are summed out exactly. If the guide has no latents the value is exact, and
    one particle is enough. With global latents the rows in `batch` are one data set.

    Args:
        num_particles: K draws of the guide; where global and local latents are both drawn, a fifth
            of it are draws of the global ones.
        training: returns the training rows, if those in `batch` are new. With global latents the
            result is then their predictive density given the training rows.
        weights: of the rows (N,): a row counts as w_n equal rows, in the value, its division by
            their number Σ_n w_n, and its standard error.
        training_weights: of the training rows.

    Raises:
        CannotSayError: log p(x) has no terms by row, and the density is predictive or the rows have
            weights.
    """
    with torch.no_grad(), preserve_rng(), pair.scope():
        torch.manual_seed(seed)
        structure = analyze_for_particles(pair.model, pair.guide, batch, {}, 2)
        if not _is_shared(structure):
            return _marginal(pair, batch, num_particles, weights)
        if training is None:
            return _joint(pair, batch, structure, num_particles, weights)
        densities, exact = predictive_densities(
            pair,
            training(),
            batch,
            num_particles,
            weights=weights,
            training_weights=training_weights,
        )
    log_w, log_lik = densities.log_p[:, None].cpu(), densities.log_lik.cpu()
    rows = torch.ones(len(batch[0])) if weights is None else weights
    return _of_data_set(log_w, exact, rows, num_particles, log_lik)


def shares_latents(pair: ModelGuidePair, *batch: Any) -> bool:
    """True if latents outside the plate over rows make the rows one data set."""
    with pair.scope():
        return _is_shared(analyze_pair(pair.model, pair.guide, batch, {}))


def _is_shared(structure: PairStructure) -> bool:
    return structure.data_plate is None and bool(structure.latents or structure.enumerated)


def _marginal(
    pair: ModelGuidePair, batch: Batch, num_particles: int, weights: Tensor | None
) -> Evidence:
    """Rows that are independent given the parameters."""
    log_w, exact = _weights(pair, batch, num_particles)
    K, N = len(log_w), len(batch[0])
    per_row, k = log_w.logsumexp(0) - math.log(K), psis.k_hat(log_w.T, exact)
    share_bad = float((k > RELIABLE_K_HAT).mean())
    any_error = share_bad <= MOST_ROWS or K < psis.MIN_DRAWS  # without k̂ nothing is against it
    scale = len(per_row) / N  # no plate over rows: one weight of all
    w = torch.ones_like(per_row) if weights is None else weights.to(per_row)
    value = float((w * per_row).sum() / w.sum()) * scale
    return Evidence(
        value=value,
        standard_error=standard_error(per_row, weights) if any_error else math.nan,
        monte_carlo_error=psis.draws_error(log_w.T, w.cpu().numpy()) * scale,
        effective_particles=float(psis.effective_size(log_w.T).min()),
        num_particles=K,
        num_draws=K,
        per_row=per_row,
        kind="marginal",
        k_hat=k,
        joint_k_hat=float(k.max()),
        row_by_row=value,
    )


def _joint(
    pair: ModelGuidePair,
    batch: Batch,
    structure: PairStructure,
    num_particles: int,
    weights: Tensor | None,
) -> Evidence:
    """The rows as one data set."""
    try:
        log_w, exact = _nested_weights(pair, batch, structure, num_particles, weights), False
    except CannotSayError:  # no terms by row: all latents are drawn together
        if weights is not None:
            raise
        log_w = None
    if log_w is None:
        log_w, exact = _weights(pair, batch, num_particles)
    rows = torch.ones(len(batch[0])) if weights is None else weights
    return _of_data_set(log_w, exact or not structure.latents, rows, num_particles)


def _nested_weights(
    pair: ModelGuidePair,
    batch: Batch,
    structure: PairStructure,
    num_particles: int,
    weights: Tensor | None,
) -> Tensor | None:
    """log w (S, 1) of draws of the global latents, with fresh draws of the local ones given each.

    None if the guide has no local latents and rows no weights.
    """
    local = not structure.latents.keys() <= global_latents(pair.guide, batch)
    if not local and weights is None:
        return None
    count = max(1, num_particles // LOCAL_SHARE) if local else num_particles
    draws = draw_globals(pair.guide, batch, count if structure.latents else 1, structure)
    densities = conditional_densities(
        pair.model,
        pair.guide,
        batch,
        draws,
        structure=structure,
        num_particles=local_particles(structure),
        weights=weights,
    )
    return (densities.log_p - densities.log_q)[:, None].cpu()


def _of_data_set(
    log_w: Tensor,
    exact: bool,
    weights: Tensor,
    num_particles: int,
    log_lik: Tensor | None = None,
) -> Evidence:
    """One weight of all rows, log w (S, 1); of each new row alone log p(y_n | θ_s) (S, N)."""
    S, alone = len(log_w), log_w if log_lik is None else log_lik
    kind: Kind = "joint" if log_lik is None else "predictive"
    w = weights.cpu().double()
    N = float(w.sum())
    total = log_w.logsumexp(0) - math.log(S)
    joint_k, k = psis.k_hat(log_w.T, exact)[0], psis.k_hat(alone.T, exact)
    error = psis.draws_error(log_w.T) / N if joint_k <= RELIABLE_K_HAT else math.nan
    ess = psis.effective_size(log_w.T)
    per_row = total if log_lik is None else log_lik.logsumexp(0) - math.log(S)
    any_error = float((k > RELIABLE_K_HAT).mean()) <= MOST_ROWS
    value = float(total) / N
    row_by_row = value if log_lik is None else float((w * per_row).sum() / N)
    if log_lik is not None and joint_k > RELIABLE_K_HAT:
        kind, value, joint_k = "pointwise", row_by_row, k.max()
        error = psis.shared_draws_error(log_lik.T, w.numpy())
        ess = psis.effective_size(log_lik.T)
    of_rows = log_lik is not None and any_error
    return Evidence(
        value=value,
        standard_error=standard_error(per_row, w) if of_rows else math.nan,
        monte_carlo_error=error,
        effective_particles=float(ess.min()),
        num_particles=1 if exact else num_particles,
        num_draws=S,
        per_row=per_row,
        kind=kind,
        k_hat=k,
        joint_k_hat=float(joint_k),
        row_by_row=row_by_row,
    )


def reason_for_training_rows(pair: ModelGuidePair, rows: Batch) -> str:
    """Why the global latents given other rows are not those given the training rows; else empty."""
    with torch.no_grad(), preserve_rng(), pair.scope(), poutine.block():
        if sites := global_state_sites(pair.model, pair.guide, rows):
            return f"they determine the posterior of the enumerated sites {sorted(sites)}"
        theta = next(iter(draw_globals(pair.guide, rows, 1)))
        copies = tuple(t.clone() if isinstance(t, Tensor) else t for t in rows)
        with pyro.validation_enabled(False), FollowDependence() as dependence:
            for part in (part for part in copies if isinstance(part, Tensor)):
                dependence.label(part)
            log_q = global_log_prob(pair.guide, theta, copies)
            reads = dependence.is_unknown or dependence.labels(log_q) is not None
    return "the guide reads them" if reads else ""


def standard_error(per_row: Tensor, weights: Tensor | None = None) -> float:
    """Standard error of the mean of (N,) values, repeated w_n times; NaN for a single value."""
    w = torch.ones_like(per_row) if weights is None else weights.to(per_row)
    W = float(w.sum())
    if W <= 1:
        return math.nan
    mean = (w * per_row).sum() / W
    return float(((w * (per_row - mean) ** 2).sum() / (W - 1) / W).sqrt())


def num_latent_values(pair: ModelGuidePair, *batch: Any) -> int:
    """Number of scalars in one draw of the guide for these rows."""
    with torch.no_grad(), preserve_rng(), pair.scope(), poutine.block():
        sites = latent_sites(poutine.trace(pair.guide).get_trace(*batch))
    return sum(site["value"].numel() for site in sites.values())


def _weights(pair: ModelGuidePair, batch: Batch, num_particles: int) -> tuple[Tensor, bool]:
    """log w (K, N), or (K, 1) for joint weights; True, and K = 1, if there is nothing to draw."""
    width = num_latent_values(pair, *batch)
    if width == 0:
        num_particles = 1
    chunk = max(1, min(num_particles, CHUNK // len(batch[0]), LATENT_VALUES // max(1, width)))
    sizes = [min(chunk, num_particles - start) for start in range(0, num_particles, chunk)]
    parts = []
    structure = analyze_for_particles(pair.model, pair.guide, batch, {}, max(sizes))
    for size in sizes:
        log_w = log_weights(pair.model, pair.guide, *batch, num_particles=size, structure=structure)
        parts.append(log_w.reshape(size, -1).double())
    return torch.cat(parts).cpu(), width == 0
