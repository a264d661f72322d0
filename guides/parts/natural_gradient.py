"""Natural-gradient ascent on the bound of each row.

With q(z_n; λ_n) = T(N(μ_n, diag σ_n²)), λ_n = (μ_n, log σ_n), and fixed points ε_1 … ε_K in place
of draws of a standard normal,

    L_n(λ_n) = 1/K Σ_j [ log p(x_n, T(u_nj)) + log |det ∂T(u_nj)| ] + Σ log σ_n + k/2 log 2πe,
    u_nj = μ_n + σ_n ε_j,

with the sites that the model enumerates marginalized inside log p. A step moves the natural
parameters of the normal along the natural gradient. With g the gradient of L, and
ρ = 1 - g(log σ) the curvature of -log p in units of 1 / σ²,

    1/σ² ← r / σ²,  r = 1 + α_n (ρ - 1),      μ ← μ + α_n g(μ) σ² / r.

For α = 1 and log p a quadratic without correlations, one step reaches the optimum from everywhere.
A step is accepted in the rows whose L_n it raises; the other rows divide their α_n by four. So no
row's L_n ever falls, and a row's steps depend on no other row.

The points come in pairs ε, -ε and are the same for all rows and at all times: L_n is a function,
without noise. From K = 2 k on their covariance is I, so that L_n is the ELBO itself wherever
log p is quadratic in u; elsewhere it approaches the ELBO as K grows. For every λ_n, q is a normal
with these parameters, so that an objective estimates a bound with it.

This module imports `ppl_lvm.particles`, because log p of each row with enumerated sites
marginalized is computed there.

Reference:
    Khan, Lin (2017). Conjugate-computation variational inference.
    https://arxiv.org/abs/1703.04265, and for normals section 4 there.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor, nn

from ppl_lvm.authoring import Signature, dry_run
from ppl_lvm.guides.parts.support_transform import (
    enter_plates,
    open_plates,
    row_plate,
    subsamples,
)
from ppl_lvm.guides.parts.variational_families import TransformedFactor
from ppl_lvm.particles import draw_particles
from ppl_lvm.particles.structure import analyze_pair
from ppl_lvm.particles.tracing import ReplayValues

LEAST_DRAWS = 16  # fewer cost tenths of a nat where log p is far from quadratic
LEAST_RATIO = 0.1  # of r: where log p is not concave, σ grows by at most √10 per step


class LocalBound:
    """L_n(λ_n) of every row of a batch.

    Args:
        model: the model; its local latents are those of `factors`, or enumerated.
        model_signature: its signature.
        factors: of the family Diagonal, in the order of λ.
        batch: some rows.
        draws: K, an even number; None: 2 k, at least 16.
        guide: name of the guide in errors.
        centers: values of the global latents, at which λ is fitted.

    Raises:
        ValueError: for a model whose rows are not independent given λ.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        model_signature: Signature,
        factors: Sequence[TransformedFactor],
        batch: tuple[Any, ...],
        draws: int | None,
        guide: str,
        centers: Callable[[], dict[str, Tensor]] = dict,
    ) -> None:
        if model_signature.masking_program is not None:
            raise ValueError(
                f"{guide}: the model masks latents, whose scale has no optimum in a row by itself. "
                "Use ppl_lvm.guides:auto_guide."
            )
        # In a tuple: the parameters of the model are not parameters of the guide.
        self._model, self._signature, self._factors = (model,), model_signature, factors
        self._centers = centers
        self.size = sum(factor.size for factor in factors)  # k
        draws = max(LEAST_DRAWS, 2 * self.size) if draws is None else draws
        if draws < 2 or draws % 2:
            raise ValueError(f"{guide}: draws={draws}. Use an even number, at least 2.")
        like = next((x for x in batch if x.is_floating_point()), torch.empty(0))
        loc, scale = [index.to(like.device) for index in _indices(factors)]
        self._loc, self._scale = loc, scale
        self._order = torch.cat([loc, scale]).argsort()
        self._points = points(draws, self.size).to(like.device)

        def random_guide(*batch: Any) -> None:
            subsampled = subsamples(model_signature)
            rows = row_plate(model_signature).size if subsampled else len(batch[0])
            lam = torch.randn(rows, 2 * self.size).to(like)
            plates = open_plates([factor.site for factor in factors], model_signature, batch)
            parts = lam.split([2 * factor.size for factor in factors], dim=-1)
            for factor, part in zip(factors, parts, strict=True):
                with enter_plates(factor.site, plates):
                    pyro.sample(factor.site.name, factor(part))

        with dry_run(model):
            self._plan = analyze_pair(self._at_centers(), random_guide, batch, {})
        if self._plan.data_plate is None:
            raise ValueError(
                f"{guide}: it fits each row separately, but the model's rows depend on each "
                f"other: {self._plan.joint_reason}. Use ppl_lvm.guides:auto_guide."
            )

    def __call__(self, lam: Tensor, *batch: Any, rows: Tensor | None = None) -> Tensor:
        """L_n (B,), nats, of λ (B, 2 k).

        Args:
            lam: λ of the rows.
            batch: arguments of the model.
            rows: the rows (B,) of the subsample, where the plate over rows has a `subsample_size`.
        """
        K, B = len(self._points), len(lam)
        values, log_det = self._values(lam, self._points.to(lam))
        with _eval_mode(self._model[0]), poutine.block():
            if rows is None:  # all points in one run, on the batch repeated K times
                log_p = self._log_p(values, tuple(_tile(x, K) for x in batch), K * B)
            else:
                parts = [self._values(lam, eps[None])[0] for eps in self._points.to(lam)]
                with ReplayValues({row_plate(self._signature).name: rows}):
                    log_p = torch.cat([self._log_p(part, batch, B) for part in parts])
        mean = (log_p + log_det).reshape(K, B).mean(0)
        entropy = lam[:, self._scale].sum(-1) + 0.5 * self.size * math.log(2 * math.pi * math.e)
        return mean + entropy

    def _log_p(self, values: dict[str, Tensor], batch: tuple[Any, ...], rows: int) -> Tensor:
        particles = draw_particles(self._at_centers(), self._at(values), batch, {}, self._plan, 1)
        return particles.log_p.expand(1, rows)[0]

    def _at_centers(self) -> Callable[..., Any]:
        """The model conditioned on the centers of its global latents."""
        centers = self._centers()
        return poutine.condition(self._model[0], data=centers) if centers else self._model[0]

    def gradient(
        self, lam: Tensor, *batch: Any, through: bool, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """L_n (B,) and its gradient (B, 2 k); differentiable if `through`."""
        with torch.enable_grad():
            if not through:
                lam = lam.detach().requires_grad_()
            value = self(lam, *batch, rows=rows)
            (slope,) = torch.autograd.grad(value.sum(), lam, create_graph=through)
        return (value, slope) if through else (value.detach(), slope)

    def step(self, lam: Tensor, slope: Tensor, alpha: Tensor) -> Tensor:
        """λ (B, 2 k) after a step of length α (B, 1) along the natural gradient."""
        mu, log_sigma = lam[:, self._loc], lam[:, self._scale]
        r = (1 - alpha * slope[:, self._scale]).clamp(min=LEAST_RATIO)
        mu = mu + alpha * slope[:, self._loc] * (2 * log_sigma).exp() / r
        return torch.cat([mu, log_sigma - 0.5 * r.log()], dim=-1)[:, self._order]

    def _values(self, lam: Tensor, eps: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Values of the sites at all points, K B rows, points outermost; log |det ∂T| (K B,)."""
        u = lam[:, self._loc]
        if eps is not None:
            u = (u + lam[:, self._scale].exp() * eps[:, None, :]).flatten(0, 1)
        values, log_det = {}, u.new_zeros(len(u))
        parts = u.split([factor.size for factor in self._factors], dim=-1)
        for factor, part in zip(self._factors, parts, strict=True):
            values[factor.site.name], log_dets = factor.value(part)
            log_det = log_det + log_dets
        return values, log_det

    def _at(self, values: dict[str, Tensor]) -> Callable[..., None]:
        """A guide that samples these values."""
        sites = [factor.site for factor in self._factors]

        def guide(*batch: Any) -> None:
            plates = open_plates(sites, self._signature, batch)
            for site in sites:
                with enter_plates(site, plates):
                    pyro.sample(
                        site.name, Delta(values[site.name], event_dim=len(site.event_shape))
                    )

        return guide


def ascend(
    bound: LocalBound,
    lam: Tensor,
    alpha: Tensor,
    steps: int,
    *batch: Any,
    rows: Tensor | None = None,
    through: bool = False,
    enough: float | None = None,
) -> tuple[Tensor, Tensor]:
    """λ (B, 2 k) and α (B, 1) after `steps` steps.

    Args:
        bound: L.
        lam, alpha: initial values.
        steps: number of steps of every row.
        batch: arguments of the model.
        rows: see `LocalBound`.
        through: whether gradients flow from the result to `lam` and to the model's parameters,
            through the steps.
        enough: stop once no row's L_n has risen by more than this in three consecutive steps.
    """
    through = through and torch.is_grad_enabled()
    lam = lam if through else lam.detach()
    value, slope = bound.gradient(lam, *batch, through=through, rows=rows)
    quiet = 0
    for _ in range(steps):
        proposal = bound.step(lam, slope, alpha)
        next_value, next_slope = bound.gradient(proposal, *batch, through=through, rows=rows)
        better = next_value.detach() > value.detach()
        if enough is not None:
            risen = torch.where(better, next_value - value, 0.0).max()
            quiet = 0 if float(risen) > enough else quiet + 1
        lam = torch.where(better[:, None], proposal, lam)
        value = torch.where(better, next_value, value)
        slope = torch.where(better[:, None], next_slope, slope)
        alpha = torch.where(better[:, None], (2 * alpha).clamp(max=1.0), alpha / 4)
        if quiet == 3:
            break
    return lam, alpha


def points(count: int, size: int) -> Tensor:
    """K points ε (K, k) in antithetic pairs: mean 0, mean squares 1; covariance I if K ≥ 2 k."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(count // 2, size, generator=generator, dtype=torch.float64)
    if len(half) >= size:
        half = torch.linalg.qr(half).Q * math.sqrt(len(half))
    else:
        half = half / half.square().mean(0).sqrt()
    return torch.cat([half, -half])


def _indices(factors: Sequence[TransformedFactor]) -> tuple[Tensor, Tensor]:
    """Indices in λ of μ and of log σ of each unconstrained value: (k,) each."""
    loc, scale, begin = [], [], 0
    for factor in factors:
        event = math.prod(factor.transform.shape)
        block = torch.arange(begin, begin + 2 * factor.size).reshape(-1, 2, event)
        loc.append(block[:, 0].flatten())
        scale.append(block[:, 1].flatten())
        begin += 2 * factor.size
    return torch.cat(loc), torch.cat(scale)


def _tile(x: Any, times: int) -> Any:
    if not isinstance(x, Tensor) or x.dim() == 0:
        return x
    return x.repeat(times, *[1] * (x.dim() - 1))


@contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    """The model in evaluation mode: without dropout, running averages unchanged."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
