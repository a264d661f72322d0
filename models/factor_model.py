"""Factor models of counts and of binary columns.

    z_n  ~ N(0, I)                                           latent    (N, D)
    x_np ~ Poisson(exp η_np)                                 observed  (N, P)
         or NegativeBinomial(mean exp η_np, dispersion a_p)
         or Bernoulli(σ(η_np)),      η = W z + b

The negative binomial has variance m + a m² about its mean m: overdispersion that the factors do
not explain. a → 0 is the Poisson. With Bernoulli columns it is the latent-trait model of tests and
questionnaires. With an exposure e_n of row n (hours, area, library size) the rate of a count is
e_n exp η_np. The integral over z has no closed form. For up to three factors `log_evidence`
computes it by adaptive quadrature. A missing value (NaN) is left out of its row's likelihood.

Trains with `fit` (one encoder for all rows) or by Monte Carlo EM
(`ppl_lvm.training.em.monte_carlo`).

References:
    Bartholomew, Knott, Moustaki (2011). Latent variable models and factor analysis. Chapters 4, 5.
    Wedel, Böckenholt, Kamakura (2003). Factor models for multivariate count data.
    https://doi.org/10.1016/S0047-259X(03)00020-4
"""

import warnings
from typing import Any

import pyro
import torch
from pyro.distributions import Bernoulli, NegativeBinomial, Normal, Poisson, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from ppl_lvm.authoring import preserve_rng
from ppl_lvm.core.messages import unknown
from ppl_lvm.core.validate import Count
from ppl_lvm.models.parts.examples import example_counts
from ppl_lvm.models.parts.factors import adaptive_quadrature
from ppl_lvm.nn.lazy import LazilySized

LIKELIHOODS = ("poisson", "negative-binomial", "bernoulli")
LARGE_ERROR = 1e-3  # of the quadrature, nats per row


class FactorModel(LazilySized, PyroModule):
    """D normal factors of P columns of counts or of zeros and ones.

    Args:
        latent: D.
        observed: P. If None, inferred from the first batch or a loaded state.
        likelihood: "poisson", "negative-binomial" or "bernoulli".
    """

    example_batch = staticmethod(example_counts)

    W: Tensor  # (P, D)
    b: Tensor  # (P,)
    dispersion: Tensor  # a (P,), of the negative binomial alone

    def __init__(
        self, latent: Count = 2, observed: Count | None = None, likelihood: str = "poisson"
    ) -> None:
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ValueError(unknown("likelihood", likelihood, LIKELIHOODS))
        self.latent = latent
        self.likelihood = likelihood
        self.set_sizes(observed)

    def forward(self, x: Tensor, exposure: Tensor | None = None) -> None:
        """Rows `x` (N, P), NaN where a value is missing, and their exposures (N,), of counts."""
        self.infer_sizes(x)
        with pyro.plate("data", len(x), dim=-1):
            prior = Normal(x.new_zeros(self.latent, dtype=self.W.dtype), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            likelihood = self._likelihood_of(z, exposure).mask(~x.isnan())
            pyro.sample("x", likelihood.to_event(1), obs=x.nan_to_num(0.0))

    def decode(self, z: Tensor, exposure: Tensor | None = None) -> Tensor:
        """Means of x (..., P) at codes `z` (..., D)."""
        mean: Tensor = self._likelihood_of(z, exposure).mean
        return mean

    def log_evidence(
        self, x: Tensor, nodes: int | None = None, *, exposure: Tensor | None = None
    ) -> Tensor:
        """log p(x_n) of rows `x` (N, P), in nats, by adaptive Gauss-Hermite quadrature: (N,).

        Warns where the estimated error of a row is above 0.001 nats; see `quadrature`.

        Raises:
            ValueError: for more than three factors; use `run.log_evidence`.
        """
        value, error = self.quadrature(x, nodes, exposure=exposure)
        if (wide := ~(error <= LARGE_ERROR)).any():
            warnings.warn(
                f"FactorModel.log_evidence: the quadrature of {int(wide.sum())} of {len(x)} rows "
                f"has an estimated error of up to {error.max().item():.1e} nats. Pass more nodes, "
                "or compare with run.log_evidence(x).",
                stacklevel=2,
            )
        return value

    def quadrature(
        self, x: Tensor, nodes: int | None = None, *, exposure: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """log p(x_n) of rows `x` (N, P) and the estimated error, in nats and doubles: (N,) each.

        Args:
            x: rows, NaN where a value is missing.
            nodes: of each factor, around the mode of p(z | x_n) (default: 41, 31 or 15 for one,
                two or three factors). Rows that need more nodes get them.
            exposure: of the rows (N,), as in `forward`.

        Raises:
            ValueError: for more than three factors; use `run.log_evidence`.
        """
        self.infer_sizes(x)
        D, most = self.latent, adaptive_quadrature.MOST_FACTORS
        nodes = nodes or adaptive_quadrature.NODES.get(D, 15)
        if most < D:
            raise ValueError(
                f"Quadrature over {D} factors takes {nodes}^{D} points a row; the limit is {most} "
                "factors. Use run.log_evidence(x), which draws them."
            )
        present, values = ~x.isnan(), x.nan_to_num(0.0).double()
        W, b = self.W.double(), self.b.double()
        negative_binomial = self.likelihood == "negative-binomial"
        dispersion = self.dispersion.double() if negative_binomial else None
        offset = self._offset(exposure).double().expand(len(x), 1)

        def log_joint(rows: Tensor, z: Tensor) -> Tensor:
            # Means beyond e^±700 are no doubles; their weight is 0.
            eta = (z @ W.mT + b + offset[rows, None]).clamp(-700.0, 700.0)
            likelihood = self._likelihood(eta, dispersion).mask(present[rows, None])
            log_prob: Tensor = likelihood.log_prob(values[rows, None]).sum(-1)
            return log_prob + adaptive_quadrature.log_standard_normal(z)

        return adaptive_quadrature.log_integrals(log_joint, len(x), len(b), nodes, W)

    def initialize(self, x: Tensor, exposure: Tensor | None = None) -> None:
        """Start from the columns' means (of counts, per exposure), with small random loadings.

        Raises:
            ValueError: for a value outside the likelihood's support, or a column without a value.
        """
        self.infer_sizes(x)
        self._check_support(x)
        x = x.detach().double()
        if (empty := x.isnan().all(0)).any():
            raise ValueError(
                f"Column {int(empty.nonzero()[0])} has no value in {len(x)} rows. Leave it out."
            )
        e = self._offset(exposure).detach().double().exp().expand(len(x), 1)
        n = (e * ~x.isnan()).sum(0)
        mean = (x.nansum(0) + 0.5) / (n + e.mean())  # never on the boundary
        b = mean.log() if self.likelihood != "bernoulli" else mean.logit()
        with torch.no_grad():
            self.b.copy_(b)
            self.W.copy_(0.3 * torch.randn(self.W.shape))
        if self.likelihood == "negative-binomial":
            excess = ((x - e * mean).square() - e * mean).nanmean(0) / mean.square()
            excess = excess / (e.square() * ~x.isnan()).sum(0) * (~x.isnan()).sum(0)
            self.dispersion = excess.clamp(0.05, 5.0).to(self.W.dtype)

    def _likelihood_of(self, z: Tensor, exposure: Tensor | None = None) -> Any:
        """p(x | z) for `z` (..., D): batch (..., P)."""
        dispersion = self.dispersion if self.likelihood == "negative-binomial" else None
        return self._likelihood(z @ self.W.mT + self.b + self._offset(exposure), dispersion)

    def _offset(self, exposure: Tensor | None) -> Tensor:
        """log e_n, (N, 1); or 0, (1,)."""
        if exposure is None:
            return self.b.new_zeros(1)
        if self.likelihood == "bernoulli":
            raise ValueError(
                "exposure: a Bernoulli column has no rate. Use likelihood='poisson' or "
                "'negative-binomial', or leave the exposure out."
            )
        return exposure.to(self.b).log().reshape(-1, 1)

    def _likelihood(self, eta: Tensor, dispersion: Tensor | None) -> Any:
        """p(x | η) for `eta` (..., P)."""
        if self.likelihood == "bernoulli":
            return Bernoulli(logits=eta)
        if dispersion is None:
            return Poisson(eta.exp())
        # Successes before 1/a failures: logits log(a m) give mean m and variance m + a m².
        return NegativeBinomial(1 / dispersion, logits=eta + dispersion.log())

    def _check_support(self, x: Tensor) -> None:
        present = ~x.isnan()
        if self.likelihood == "bernoulli":
            wrong, support = (x != 0) & (x != 1) & present, "0 or 1"
        else:
            wrong, support = ((x < 0) | (x != x.round())) & present, "counts 0, 1, 2, …"
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"likelihood={self.likelihood!r} needs {support}, but row {row}, column {column} "
                f"of x is {x[row, column].item():g} ({int(wrong.sum())} such values in all). "
                "Choose other columns, another likelihood, or FactorAnalysis for real numbers."
            )

    def resize(self, observed: int, **like: Any) -> None:
        with preserve_rng():  # so that `initialize` draws the same numbers in either order
            self.W = nn.Parameter(0.3 * torch.randn(observed, self.latent, **like))
        self.b = nn.Parameter(torch.zeros(observed, **like))
        if self.likelihood == "negative-binomial":
            self.dispersion = PyroParam(torch.ones(observed, **like), constraints.positive)

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (len(state["b"]),)
