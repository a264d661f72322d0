"""Random-effects meta-analysis.

    μ   ~ N(0, m²)            global    mean effect
    τ   ~ HalfCauchy(t)       global    standard deviation of the effects
    θ_n = μ + τ η_n           latent    η_n ~ N(0, 1)   the effect in study n
    y_n ~ N(θ_n, s_n²)        observed  s_n known

With `centered=True` θ_n ~ N(μ, τ²) is itself the latent. Where each study is imprecise (large s),
θ and log τ then form a funnel that neither a normal guide nor a sampler with one step size follows.
η is independent of τ a priori. Where each study is precise the centered form is better.

The integrals over θ and μ have a closed form and that over τ is one-dimensional, so `log_evidence`
is exact.

References:
    Rubin (1981). Estimation in parallel randomized experiments.
    https://doi.org/10.3102/10769986006004377
    Gelman, Carlin, Stern, Dunson, Vehtari, Rubin (2013). Bayesian data analysis. Section 5.5.
    Papaspiliopoulos, Roberts, Sköld (2007). A general framework for the parametrization of
    hierarchical models. https://doi.org/10.1214/088342307000000014
"""

import math

import numpy as np
import pyro
import torch
from pyro.distributions import HalfCauchy, Normal
from pyro.nn import PyroModule
from torch import Tensor

from ppl_lvm.core.validate import Positive
from ppl_lvm.models.parts.examples import example_rows
from ppl_lvm.models.parts.row_checks import check_complete
from ppl_lvm.nn.lazy import check_rows
from ppl_lvm.nn.units import NormalInUnits

# Enough for the integral over τ to twelve digits.
_NODES = 200


class RandomEffects(PyroModule):
    """Effects of studies around a common mean.

    Args:
        centered: True for the latent θ, False for η.
        mean_scale: m, in the units of y.
        spread_scale: t, in the units of y.
    """

    @staticmethod
    def example_batch(seed: int = 0) -> tuple[Tensor, ...]:
        """Estimates and standard errors (24, 2)."""
        (x,) = example_rows(seed, 2)
        return (torch.stack([x[:, 0], x[:, 1].abs() + 0.1], -1),)

    def __init__(
        self, centered: bool = False, mean_scale: Positive = 5.0, spread_scale: Positive = 5.0
    ) -> None:
        super().__init__()
        if not (mean_scale > 0 and spread_scale > 0):
            raise ValueError(
                f"Scales must be above zero; got mean_scale={mean_scale}, "
                f"spread_scale={spread_scale}."
            )
        self.centered = centered
        self.mean_scale = mean_scale
        self.spread_scale = spread_scale

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, 2): y_n and s_n."""
        _check_columns(x)
        one = torch.ones_like(x[0, 0])
        mu = pyro.sample("mu", NormalInUnits(0 * one, self.mean_scale * one))
        tau = pyro.sample("tau", HalfCauchy(self.spread_scale * one))
        with pyro.plate("data", len(x), dim=-1):
            if self.centered:
                theta = pyro.sample("theta", Normal(mu, tau))
            else:
                theta = mu + tau * pyro.sample("eta", Normal(0 * one, 1.0))
            pyro.sample("y", Normal(theta, x[:, 1]), obs=x[:, 0])

    def initialize(self, x: Tensor) -> None:
        """Reject missing values and standard errors that are not positive.

        Raises:
            ValueError: with the first such row.
        """
        _check_columns(x)
        _check_values(x)

    def effects(self, mu: Tensor, tau: Tensor, eta: Tensor) -> Tensor:
        """θ (…, N) from draws μ, τ (…) and η (…, N) of the non-centered model."""
        return mu[..., None] + tau[..., None] * eta

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(y_1 … y_N), jointly, in nats: (). Exact, by quadrature over τ.

        Raises:
            ValueError: for missing values, or standard errors that are not positive.
        """
        _check_columns(x)
        _check_values(x)
        _, log_joint, log_weight = self.spread_posterior(x)
        return (log_joint + log_weight).logsumexp(0)

    def spread_posterior(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes τ (Q,), log p(y, τ) there, and the logarithms of the quadrature's weights."""
        y, s = x.double().unbind(-1)
        t, w = np.polynomial.legendre.leggauss(_NODES)
        angle = torch.from_numpy(math.pi / 4 * (t + 1))  # τ = spread_scale tan(angle)
        tau = self.spread_scale * angle.tan()  # uniform in the angle under the half-Cauchy
        weight = torch.from_numpy(w / 2)
        variance = tau[:, None].square() + s.square()  # (Q, N)
        precision = (1 / variance).sum(-1) + self.mean_scale**-2
        mean = (y / variance).sum(-1) / precision
        fit = (y.square() / variance).sum(-1) - precision * mean.square()
        log_det = variance.log().sum(-1) + precision.log() + 2 * math.log(self.mean_scale)
        log_p = -0.5 * (fit + log_det + len(y) * math.log(2 * math.pi))
        return tau, log_p, weight.log()


def _check_values(x: Tensor) -> None:
    check_complete(x, "RandomEffects")
    if (wrong := ~(x[:, 1] > 0)).any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"Row {row} has standard error {x[row, 1].item():g}; it must be above zero. Give two "
            "columns: estimate, standard error."
        )


def _check_columns(x: Tensor) -> None:
    if x.dim() == 2 and x.shape[1] != 2:
        raise ValueError(
            f"RandomEffects takes two columns, estimate and standard error; got {x.shape[1]}. "
            'Choose them: load_data(..., columns=[...]), --columns "estimate,error".'
        )
    check_rows(x, 2, "RandomEffects")
