"""Log-weights and draws of K particles of B rows.

Dimension 0 of every table is the particle, dimension 1 the row:

    log_w[k, b] = log p(x_b, z_kb) - log q(z_kb | x_b)        (K, B)

Everything inside a row (event dimensions, inner plates, sequences) is summed. Discrete sites of the
model alone are summed out exactly, inside log p. If a random site is outside the data plate, each
particle has one joint log-weight, shape (K, 1).

A mini-batch of B rows of N has `scale` N/B. It multiplies the bound of each row, outside any
log-mean-exp. A joint log-weight can only have it inside; `energy_reason` then says why. The mean
of log-weights stays unbiased, other functions of them are no bounds (the energy approximation of
Li, Gal 2017).

The user's poutine.scale (a site's scale without the plates' ratios) tempers log p and log q inside
log_w; poutine.mask zeroes them. The score has the log q of the actual draw.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.particles.score_terms import ScoreTerm


@dataclass(frozen=True)
class SiteDraws:
    """K draws of one site of the guide.

    Attributes:
        value: (K, ...).
        reparameterized: gradients flow through `value`.
        is_local: the site is inside the data plate.
        row_axis: the dimension of the rows in `value`, counted from the right; None without rows.
        log_q: (K, B), or (K, 1) if global or joint; tempered.
        log_p: the same of the model's site; None if auxiliary or summed out.
        is_constant: a point outside the data plate, which belongs to the offset only.
        is_point: a point (Delta), whose log-density is no density of a draw.
        score: as log_q, but neither scaled nor masked: the density of the draw.
        analytic: computes E_q[log p - log q] of this site given the sites before it, (K, B), or
            None if no closed form is valid.
    """

    value: Tensor
    reparameterized: bool
    is_local: bool
    log_q: Tensor
    log_p: Tensor | None
    score: Tensor
    is_constant: bool = False
    is_point: bool = False
    row_axis: int | None = None
    analytic: Callable[[], Tensor | None] = lambda: None


@dataclass
class Particles:
    """K particles of B rows.

    Attributes:
        log_p: (K, B) log p(x, z), with discrete sites of the model alone summed out.
        log_q: (K, B) log q(z | x).
        score: (K, B) log q of the sites without a reparameterized draw, neither scaled nor
            masked; None without such sites.
        log_q_path: (K, B) the part of log_q of the reparameterized sites. The gradient of the
            rest has mean zero, so the mean of log-weights may omit it.
        site_draws: the guide's sites by name.
        log_likelihood: (K, B) log_p without the `log_p` of the site draws.
        scale: N/B, the factor of each row's bound; with weights of rows w_b N/B, (B,).
        offset: terms that no draw changes, already scaled; added to the sum of bounds.
        energy_reason: why this is the energy approximation and no bound; None if it is a bound.
        estimate: the site that scores an estimate of a bound, so that only the mean of log_w has
            a meaning; None if log_w is a log-weight.
        tempered: poutine.scale, a mask or a point makes log_q differ from the density of the draws.
        drawing: the handler that has changed the draws, or None.
        extras: tensors that an estimator adds to the draws.
        rescore: scores the same particles again at detached values, of which some, (K, ...), may
            be replaced. Gradients reach parameters and the replacements, and pass through no
            draw. Points (Delta sites) remain functions of parameters and draws.
        compute_score_terms: computes `score_terms`; without it, the cost of all draws is log_w.
    """

    log_p: Tensor
    log_q: Tensor
    score: Tensor | None = None
    log_q_path: Tensor = None  # type: ignore[assignment]  # set below
    site_draws: Mapping[str, SiteDraws] = field(default_factory=dict)
    log_likelihood: Tensor | None = None
    scale: Any = 1.0
    offset: Tensor | float = 0.0
    energy_reason: str | None = None
    estimate: str | None = None
    tempered: bool = False
    drawing: Any = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    rescore: Callable[[Mapping[str, Tensor]], "Particles"] | None = None
    compute_score_terms: Callable[[], tuple[ScoreTerm, ...]] | None = None

    def __post_init__(self) -> None:
        if self.log_q_path is None:
            self.log_q_path = self.log_q if self.score is None else torch.zeros_like(self.log_q)

    @cached_property
    def score_terms(self) -> tuple[ScoreTerm, ...]:
        """Score and cost of each site without a reparameterized draw, in the order of the draws."""
        if self.compute_score_terms is not None:
            return self.compute_score_terms()
        return () if self.score is None else (ScoreTerm(self.score, self.log_w.detach(), -1),)

    @property
    def log_w(self) -> Tensor:
        """(K, B) log-weights."""
        return self.log_p - self.log_q

    @cached_property
    def _at_fixed_values(self) -> "Particles":
        has_path = any(draw.value.requires_grad for draw in self.site_draws.values())
        return self.rescore({}) if has_path and self.rescore is not None else self

    @property
    def log_p_at_fixed_values(self) -> Tensor:
        """(K, B) log p at detached values: gradients reach the parameters directly only."""
        return self._at_fixed_values.log_p

    @property
    def log_q_at_fixed_values(self) -> Tensor:
        """(K, B) log q at detached values: its gradient is the score."""
        return self._at_fixed_values.log_q

    @property
    def log_q_at_fixed_parameters(self) -> Tensor:
        """(K, B) log q at detached guide parameters: gradients pass through draws only."""
        return self.log_q - (self.log_q_at_fixed_values - self.log_q_at_fixed_values.detach())

    @property
    def tempering_at_fixed_values(self) -> Tensor | float:
        """(K, B) log_q minus the density of the draws, at detached values; 0 if not tempered.

        Contains the log_density of points: its derivative in parameters is no score.
        """
        if not self.tempered:
            return 0.0
        draws = self._at_fixed_values.site_draws.values()
        log_density = sum(d.score for d in draws if not (d.is_constant or d.is_point))
        return self.log_q_at_fixed_values - log_density

    @property
    def points_at_fixed_values(self) -> Tensor | float:
        """(K, B) the part of log_q of points, at detached values."""
        draws = self._at_fixed_values.site_draws.values()
        return sum((d.log_q for d in draws if d.is_point and not d.is_constant), 0.0)
