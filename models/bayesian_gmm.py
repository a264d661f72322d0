"""Bayesian Gaussian mixture with a sparse Dirichlet prior.

    π       ~ Dirichlet(α, …, α)           global, α = 1/K: sparse
    μ_k     ~ N(m, diag s²)                global    (K, P), unconstrained (μ_k - m) / s
    σ_k     ~ LogNormal(log(s / 2), 1)     global    (K, P)
    R_k R_kᵀ ~ LKJ(1)                      global    (K, P, P), a correlation matrix
    z_n     ~ Categorical(π)               latent    (N,), enumerated
    x_n     ~ N(μ_{z_n}, Σ_{z_n})          observed  (N, P)

with Σ_k = diag(σ_k) R_k R_kᵀ diag(σ_k). m and s are the columns' means and standard deviations,
set by `initialize`. With `covariance="diag"` there is no R.

A Dirichlet with α < 1 has its mass at the corners of the simplex. A component without rows then
costs least at weight zero, so surplus components empty. The guide needs a family with mass there:
`GlobalNormal` has a Dirichlet for it.

Reference:
    Rousseau, Mengersen (2011). Asymptotic behaviour of the posterior distribution in overfitted
    mixture models. https://doi.org/10.1111/j.1467-9868.2011.00781.x
"""

from typing import Any

import pyro
import torch
from pyro.distributions import (
    Categorical,
    Dirichlet,
    LKJCholesky,
    LogNormal,
    MultivariateNormal,
    Normal,
)
from pyro.nn import PyroModule
from pyro.ops.indexing import Vindex
from torch import Tensor

from ppl_lvm.core.messages import unknown
from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.models.parts.examples import example_rows
from ppl_lvm.models.parts.mixtures.moments import moments, start_clusters
from ppl_lvm.models.parts.row_checks import check_complete
from ppl_lvm.nn.lazy import LazilySized
from ppl_lvm.nn.units import NormalInUnits

COVARIANCES = ("full", "diag")


class BayesianGaussianMixture(LazilySized, PyroModule):
    """At most K Gaussians over P columns, with priors on all parameters.

    Args:
        components: K, an upper bound of the number of clusters.
        observed: P. If None, inferred from the first batch or a loaded state.
        covariance: "full" or "diag".
        concentration: α. If None, 1/K.
    """

    example_batch = staticmethod(example_rows)

    center: Tensor  # m (P,)
    spread: Tensor  # s (P,)

    def __init__(
        self,
        components: Count = 10,
        observed: Count | None = None,
        covariance: str = "full",
        concentration: Positive | None = None,
    ) -> None:
        super().__init__()
        if covariance not in COVARIANCES:
            raise ValueError(unknown("covariance", covariance, COVARIANCES))
        if components < 2 or (concentration is not None and not concentration > 0):
            raise ValueError(
                "A Bayesian mixture needs at least two components and a concentration above "
                f"zero; got components={components}, concentration={concentration}."
            )
        self.components = components
        self.covariance = covariance
        self.concentration = 1 / components if concentration is None else concentration
        self.set_sizes(observed)

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P)."""
        self.infer_sizes(x)
        K, P = self.components, len(self.center)
        pi = pyro.sample("weights", Dirichlet(x.new_full((K,), self.concentration)))
        # Components are an event dimension, so that a plate of particles fits to their left.
        centers = NormalInUnits(self.center, self.spread).expand([K, P])
        mu = pyro.sample("means", centers.to_event(2))
        prior = LogNormal((self.spread / 2).log(), 1.0)
        sigma = pyro.sample("scales", prior.expand([K, P]).to_event(2))
        R = None
        if self._correlated:
            one = torch.ones_like(self.center[0])
            R = pyro.sample("correlations", LKJCholesky(P, one).expand([K]).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Categorical(pi), infer={"enumerate": "parallel"})
            pyro.sample("x", _gaussian(mu, sigma, R, z), obs=x)

    def initialize(self, x: Tensor) -> None:
        """Set the columns' means and standard deviations from rows `x` (N, P).

        Raises:
            ValueError: for missing values, or a constant column.
        """
        self.infer_sizes(x)
        check_complete(x, f"{type(self).__name__} (unlike GaussianMixture)")
        rows = x.detach().double()
        spread = rows.std(0, correction=0)
        if (spread == 0).any():
            column = int((spread == 0).nonzero()[0])
            raise ValueError(f"Column {column} of x is constant. Leave it out.")
        self.center.copy_(rows.mean(0))
        self.spread.copy_(spread)

    def initial_values(self, x: Tensor) -> dict[str, Tensor]:
        """Initial values for a guide: k-means centers under torch's seed, wide components.

        Wide components overlap and compete from the first step. From tight ones, each on its own
        cluster, training seldom reaches fewer.
        """
        self.infer_sizes(x)
        standard = (x - self.center) / self.spread
        _, means, _ = moments(x, start_clusters(standard, self.components))
        K, P = means.shape
        start = {
            "weights": torch.full((K,), 1 / K).to(means),
            "means": means,
            "scales": self.spread.expand(K, P),
        }
        if self._correlated:
            start["correlations"] = torch.eye(P).expand(K, P, P)
        return {name: value.to(self.center.dtype) for name, value in start.items()}

    @property
    def _correlated(self) -> bool:
        return self.covariance == "full" and len(self.center) > 1

    def resize(self, observed: int, **like: Any) -> None:
        self.register_buffer("center", torch.zeros(observed, **like))
        self.register_buffer("spread", torch.ones(observed, **like))

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (len(state["center"]),)


def _gaussian(mu: Tensor, sigma: Tensor, R: Tensor | None, z: Tensor) -> Any:
    """The Gaussian of component z, for μ, σ (…, K, P) and R (…, K, P, P)."""
    if R is None:
        return Normal(Vindex(mu)[..., z, :], Vindex(sigma)[..., z, :]).to_event(1)
    L = sigma[..., None] * R
    return MultivariateNormal(Vindex(mu)[..., z, :], scale_tril=Vindex(L)[..., z, :, :])
