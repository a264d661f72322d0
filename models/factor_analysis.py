"""Factor analysis: D causes, P columns, each with a noise of its own.

    z_n ~ N(0, I)                       latent    (N, D)
    x_n ~ N(W z_n + μ, diag(ψ))         observed  (N, P)

so that x_n ~ N(μ, W Wᵀ + diag ψ). Unlike PPCA it does not depend on the columns' units, and its
maximum has no closed form: EM finds it. A value that is missing (NaN) is left out of its row's
likelihood, which integrates it out exactly.

The likelihood is unbounded where a factor explains one column alone (a Heywood case): its noise
then sinks to the floor, and `degenerate` says so.

Reference:
    Rubin, Thayer (1982). EM algorithms for ML factor analysis.
    https://doi.org/10.1007/BF02293851
"""

from typing import Any

import pyro
import torch
from pyro.distributions import MultivariateNormal, Normal, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from ppl_lvm.models import linear_gaussian
from ppl_lvm.models.ppca import check_rows, column_moments


class FactorAnalysis(PyroModule):
    """D normal causes behind P columns with a noise variance each.

    Args:
        latent: D.
        observed: P. If None, it is taken from the first data seen, or from a loaded state.
        floor: the least noise variance, in squared units of the data.
    """

    W: Tensor  # (P, D)
    mu: Tensor  # μ (P,)
    scale: Tensor  # s (P,), ψ = s² + floor

    def __init__(self, latent: int = 2, observed: int | None = None, floor: float = 1e-6) -> None:
        super().__init__()
        if latent < 1 or not floor > 0:
            raise ValueError(
                f"Factor analysis needs latent >= 1 and floor > 0; got latent={latent}, "
                f"floor={floor}."
            )
        self.latent = latent
        self.floor = floor
        self.observed: int | None = None
        if observed is not None:
            self._resize(observed)

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P), NaN where a value is missing."""
        self._meet(x)
        with pyro.plate("data", len(x), dim=-1):
            prior = Normal(x.new_zeros(self.latent, dtype=self.W.dtype), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            likelihood = Normal(z @ self.W.mT + self.mu, self.noise.sqrt()).mask(~x.isnan())
            pyro.sample("x", likelihood.to_event(1), obs=x.nan_to_num(0.0))

    def posterior(self, x: Tensor) -> None:
        """A guide: z drawn from p(z | x), exactly."""
        mean, L = linear_gaussian.posterior(self._theta(), x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", MultivariateNormal(mean, precision_matrix=L @ L.mT))

    @property
    def noise(self) -> Tensor:
        """ψ (P,)."""
        return self.scale**2 + self.floor

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_n) of rows `x` (N, P), exactly, in nats: (N,)."""
        self._meet(x)
        return linear_gaussian.log_evidence(self._theta(), x)

    def initialize(self, x: Tensor) -> None:
        """Start from the columns' means, half of each variance as noise and W at random.

        Raises:
            ValueError: for a column without a value, or data that never changes.
        """
        self._meet(x)
        means, variance = column_moments(x)
        W = torch.randn(self.W.shape, dtype=self.W.dtype).to(x).double()
        W = W * (0.5 * variance / self.latent).sqrt()[:, None]
        self.set_em_state({"W": W, "mu": means, "noise": 0.5 * variance})

    def degenerate(self, x: Tensor) -> str | None:
        """Why these parameters must not be chosen although their likelihood is high, or None."""
        noise, p = self.noise.min(0)
        if noise > 10 * self.floor:
            return None
        return (
            f"column {int(p)} has no noise left: its variance is {noise.item():.1e} beside a floor "
            f"of {self.floor:.0e}, a factor being that column alone. Use fewer factors, leave out "
            "a column that never changes, or raise floor."
        )

    def em_state(self) -> dict[str, Tensor]:
        """θ of expectation-maximisation (`ppl_lvm.em`), as `linear_gaussian` describes it."""
        return {name: t.detach().double() for name, t in self._theta().items()}

    def set_em_state(self, state: dict[str, Tensor]) -> None:
        """Take over θ."""
        with torch.no_grad():
            self.W.copy_(state["W"])
            self.mu.copy_(state["mu"])
        tiny = torch.finfo(self.W.dtype).tiny  # a scale of 0 has no logarithm
        self.scale = (state["noise"] - self.floor).clamp(min=tiny).sqrt().to(self.W.dtype)

    def e_step(self, state: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Moments of (z, 1) summed over rows `x` (N, P), and log p(x)."""
        return linear_gaussian.expect(state, x)

    def m_step(self, state: dict[str, Tensor], statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """θ' in closed form."""
        return linear_gaussian.maximize(state, statistics, self.floor)

    def _theta(self) -> dict[str, Tensor]:
        return {"W": self.W, "mu": self.mu, "noise": self.noise}

    def _meet(self, x: Tensor) -> None:
        """Take P from the data if nobody gave it; refuse data of another width."""
        check_rows(x, self.observed, type(self).__name__)
        if self.observed is None:
            self._resize(x.shape[1], dtype=x.dtype, device=x.device)

    def _resize(self, observed: int, **like: Any) -> None:
        self.observed = observed
        self.W = nn.Parameter(torch.randn(observed, self.latent, **like))
        self.mu = nn.Parameter(torch.zeros(observed, **like))
        self.scale = PyroParam(torch.ones(observed, **like), constraints.positive)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        mu = state.get(prefix + "mu")
        if self.observed is None and mu is not None:
            self._resize(len(mu), dtype=mu.dtype, device=mu.device)
        super()._load_from_state_dict(state, prefix, *rest)
