"""What K particles of B data carry.

Dimension 0 of every table is the particle, dimension 1 the datum:

    log_w[k, b] = log p(x_b, z_kb) - log q(z_kb | x_b)        (K, B)

where everything inside a datum (event dimensions, inner plates, sequences) is summed, and discrete
sites that only the model has are summed out exactly, inside log p. Where something random stands
outside the data plate there is one joint log-weight per particle, shape (K, 1).

A mini-batch of B rows that stands for N has `scale` N/B. It multiplies each datum's bound, outside
any log-mean-exp. A joint log-weight can only have it inside: then `energy_reason` says so, and F =
mean
stays unbiased while no other F is a bound (Li, Gal 2017 call it the energy approximation).

The user's own poutine.scale (what remains of a site's scale without the plates' ratios) tempers
log p and log q inside log_w; poutine.mask zeroes them. The score keeps log q as it was drawn.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SiteDraws:
    """One site of the guide, drawn K times.

    Attributes:
        value: (K, ...) as the program drew it.
        reparameterized: whether gradients flow through `value`.
        is_local: inside the data plate.
        log_q: (K, B), or (K, 1) if global or joint; tempered.
        log_p: the same of the model's site; None where it is auxiliary or summed out.
        is_constant: a point outside the data plate, which counts in the offset only.
        score: like log_q, but neither scaled nor masked: the density it was drawn from.
        analytic: computes E_q[log p - log q] of this site given those drawn before it, (K, B), or
            None where no closed form is valid.
    """

    value: Tensor
    reparameterized: bool
    is_local: bool
    log_q: Tensor
    log_p: Tensor | None
    score: Tensor
    is_constant: bool = False
    analytic: Callable[[], Tensor | None] = lambda: None


@dataclass
class Particles:
    """K particles of B data.

    Attributes:
        log_p: (K, B) log p(x, z), discrete sites that only the model has summed out.
        log_q: (K, B) log q(z | x).
        score: (K, B) log q of the sites without a reparameterised draw, as they were drawn; None
            if there are none.
        log_q_path: (K, B) the part of log_q that belongs to the other, reparameterised sites. The
            rest has a gradient of mean zero, which the mean of log-weights may leave out.
        draws: the guide's sites by name.
        log_likelihood: (K, B) what log_p has beside the draws' own `log_p`.
        scale: N/B, to multiply each datum's bound with.
        offset: what no draw changes, already scaled; added to the sum of bounds.
        energy: why this is the energy approximation and not a bound; None if it is a bound.
        estimate: the site that makes log_w an estimate of a bound, whose mean alone has a meaning;
            None where log_w is a log-weight.
        tempered: whether poutine.scale or mask makes log_q another function than the density of
            the draws.
        aside: what an estimator that draws in its own way keeps beside the draws.
        rescore: scores the same particles again on detached values, with other values, (K, ...),
            in place of some: gradients reach parameters and these values, and go through no draw.
            Points (Delta sites) are functions of parameters and draws, and stay so.
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
    extras: Mapping[str, Any] = field(default_factory=dict)
    rescore: Callable[[Mapping[str, Tensor]], "Particles"] | None = None

    def __post_init__(self) -> None:
        if self.log_q_path is None:
            self.log_q_path = self.log_q if self.score is None else torch.zeros_like(self.log_q)

    @property
    def log_w(self) -> Tensor:
        """(K, B) log-weights."""
        return self.log_p - self.log_q

    @cached_property
    def _held(self) -> "Particles":
        has_path = any(draw.value.requires_grad for draw in self.site_draws.values())
        return self.rescore({}) if has_path and self.rescore is not None else self

    @property
    def log_p_at_fixed_values(self) -> Tensor:
        """(K, B) log p with the values held still: its gradient is the parameters' own."""
        return self._held.log_p

    @property
    def log_q_at_fixed_values(self) -> Tensor:
        """(K, B) log q with the values held still: its gradient is the score."""
        return self._held.log_q

    @property
    def log_q_at_fixed_parameters(self) -> Tensor:
        """(K, B) log q with the guide's parameters held still: gradients through draws only."""
        return self.log_q - (self.log_q_at_fixed_values - self.log_q_at_fixed_values.detach())

    @property
    def tempering_at_fixed_values(self) -> Tensor | float:
        """(K, B) log_q less the density of the draws, values held still; 0 if not tempered."""
        if not self.tempered:
            return 0.0
        drawn = sum(draw.score for draw in self._held.site_draws.values() if not draw.is_constant)
        return self.log_q_at_fixed_values - drawn
