"""Variational diffusion model: T latents from noise to data.

    z_nT    ~ N(0, I)                            latent    (N, P)
    z_n,i-1 ~ q(z_i-1 | z_ni, x = x̂(z_ni))       latent    (N, P),  i = T, …, 1
    x_n     ~ p(x | z_n0)                        observed  (N, P)

The guide is fixed: the forward process q(z_t | x) = N(α_t u, σ_t² I) of
`ppl_lvm.nn.noise_schedule`. The model learns to reverse it with a network that predicts the noise
in z,

    ε̂(z, γ) = σ z + α f(z, γ),    x̂ = (z - σ ε̂) / α

(f = 0 is right for data ~ N(0, I)). p(x | z_0) is q(z_0 | x) as a function of x: in the units of u
N(z_0/α_0, σ_0²/α_0²), or, for C categories, ∝ exp(-½ (z_0/α_0 - u)² α_0²/σ_0²) over their values.

The bound splits into T Kullback-Leibler divergences in closed form,

    ELBO(x) = E log p(x | z_0) - KL(q(z_T | x) ‖ N(0, I)) - Σ_i E KL_i,
    KL_i = ½ (exp(γ_i - γ_i-1) - 1) ‖ε - ε̂(z_i, γ_i)‖²,

so training need not run the chain. Two programs share one set of parameters:

- Training mode draws one step i of each row, uniform and stratified over the batch, and weights it
  by T. The estimate is unbiased for the bound and its gradient. It is not a log-weight: the
  logarithm of a mean of its exponentials bounds nothing. It is marked as an estimate, and
  objectives that need log-weights (IWAE, VIMCO, …) reject it.
- Evaluation mode (`model.eval()`, set by `fit` for evaluation and by every `Run`) has all T steps
  as sites. Its log-weights are proper: `run.log_evidence` is a bound for every number of particles.

With `continuous=True` the estimate is of T = ∞: the sum becomes ½ ∫ E‖ε - ε̂(z_γ, γ)‖² dγ from γ_0
to γ_1, which depends on the ends of the schedule only. Evaluation keeps T steps.

Reference:
    Kingma, Salimans, Poole, Ho (2021). Variational diffusion models.
    https://arxiv.org/abs/2107.00630, equations 11 to 18.
"""

import math
from typing import Any

import pyro
import torch
from pyro.distributions import Categorical, Normal, Unit
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.core.messages import unknown
from ppl_lvm.core.validate import Count
from ppl_lvm.guides.diffusion import ForwardProcess
from ppl_lvm.models.parts.examples import example_rows
from ppl_lvm.models.parts.row_checks import column_moments
from ppl_lvm.nn import MLP
from ppl_lvm.nn.lazy import LazilySized, check_width
from ppl_lvm.nn.noise_schedule import Noising, StratifiedTimes, alpha_sigma, step_back
from ppl_lvm.nn.units import column_units

LIKELIHOODS = ("gaussian", "categorical")
FREQUENCIES = 4


class Diffusion(LazilySized, PyroModule):
    """P columns generated from noise in T steps.

    Args:
        observed: P. If None, inferred from the first batch or a loaded state.
        steps: T, of the bound and of the sampling chain.
        hidden: widths of the network f.
        likelihood: "gaussian" or "categorical".
        categories: C, for `likelihood="categorical"` only: a column's values are 0, …, C - 1.
        continuous: train the bound of infinitely many steps.
        denoiser: ε̂ itself, a module called with z (..., P) and γ (...), in place of the network.

    Raises:
        ValueError: for arguments that do not fit together.
    """

    example_batch = staticmethod(example_rows)

    def __init__(
        self,
        observed: Count | None = None,
        steps: Count = 32,
        hidden: tuple[Count, ...] = (128, 128),
        likelihood: str = "gaussian",
        categories: Count | None = None,
        continuous: bool = False,
        denoiser: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ValueError(unknown("likelihood", likelihood, LIKELIHOODS))
        if (likelihood == "categorical") != (categories is not None):
            raise ValueError(
                "likelihood='categorical' needs categories=C, the number of values of a column; "
                f"'gaussian' takes none. Got {likelihood!r}, categories={categories}."
            )
        self.hidden, self.continuous = tuple(hidden), continuous
        self.likelihood, self.categories = likelihood, categories
        self.process = Noising(steps)
        self.denoiser = denoiser
        self.set_sizes(observed)

    @property
    def steps(self) -> int:
        """T. It may be changed at any time: the schedule is one of continuous time."""
        return self.process.steps

    @steps.setter
    def steps(self, value: int) -> None:
        self.process.steps = value

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P)."""
        self.infer_sizes(x)
        with pyro.plate("data", len(x), dim=-1):
            if self.training:
                self.one_step(x)
            else:
                self.chain(x)

    def one_step(self, x: Tensor) -> None:
        """One step of each row, weighted by T."""
        like = self.process.means
        t = pyro.sample("t", StratifiedTimes(like))  # the guide has the same term: they cancel
        noise = pyro.sample("noise", Normal(like.new_zeros(like.shape), 1.0).to_event(1))
        u = self.process.standard(x)
        first, last = self.process.gamma(like.new_tensor([0.0, 1.0]))
        cost = self.steps_cost(u, t, noise) + _prior_cost(u, last)
        # Marked as an estimate: its exponential is not a weight.
        pyro.sample("steps", Unit(-cost), obs=_nothing(cost), infer=dict(_ESTIMATE))
        pyro.sample("x", self._rows(self.process.noised(u, noise, first)), obs=x)

    def steps_cost(self, u: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Unbiased estimate of Σ_i KL_i for t ~ U(0, 1) (...) and ε ~ N(0, I) (..., P): (...)."""
        if self.continuous:
            first, last = self.process.gamma(t.new_tensor([0.0, 1.0]))
            gamma = first + (last - first) * t
            weight = last - first
        else:
            T = self.steps
            i = (t * T).floor().clamp(max=T - 1)
            before, gamma = self.process.gamma(i / T), self.process.gamma((i + 1) / T)
            weight = T * torch.expm1(gamma - before)
        z = self.process.noised(u, noise, gamma)
        error = (noise - self.noise(z, gamma)).square().sum(-1)
        return 0.5 * weight * error

    def chain(self, x: Tensor) -> None:
        """All T steps, from noise to the data."""
        gamma, T = self.process.grid(), self.steps
        like = self.process.means
        z = pyro.sample(f"z_{T}", Normal(like.new_zeros(like.shape), 1.0).to_event(1))
        for i in range(T, 0, -1):
            mean, sd = self._step(z, gamma[i - 1], gamma[i])
            z = pyro.sample(f"z_{i - 1}", Normal(mean, sd).to_event(1))
        pyro.sample("x", self._rows(z), obs=x)

    def noise(self, z: Tensor, gamma: Tensor) -> Tensor:
        """ε̂, the predicted noise in `z` (..., P) at γ (...)."""
        if self.denoiser is not None:
            result: Tensor = self.denoiser(z, gamma)
            return result
        gamma = gamma.expand(z.shape[:-1]).unsqueeze(-1)
        alpha, sigma = alpha_sigma(gamma)
        angles = gamma * (math.pi / 40) * 2.0 ** torch.arange(FREQUENCIES).to(gamma)
        features = torch.cat([z, gamma / 10, angles.sin(), angles.cos()], -1)
        return sigma * z + alpha * self.network(features)

    @torch.no_grad()
    def draw(self, n: int, steps: int | None = None, eta: float = 1.0) -> Tensor:
        """Draw n rows (n, P) in T steps, or in fewer `steps`.

        Args:
            eta: share of each step's noise that is drawn anew. 1 is the model's own chain
                (ancestral); 0 makes x a function of z_T, which tolerates few steps better.

        Raises:
            ValueError: for η outside [0, 1], no steps, or a model without a batch.
        """
        if not 0 <= eta <= 1 or (steps is not None and steps < 1):
            raise ValueError(f"draw needs 0 <= eta <= 1 and steps >= 1; got {eta=}, {steps=}.")
        if self.observed is None:
            raise ValueError(
                "Diffusion: its number of columns is not known. Build it with observed=P."
            )
        T = self.steps if steps is None else steps
        like = self.process.means
        gamma = self.process.gamma(torch.arange(T + 1).to(like) / T)
        z = torch.randn(n, self.observed).to(like)
        for i in range(T, 0, -1):
            mean, sd = self._step(z, gamma[i - 1], gamma[i], eta)
            z = mean + sd * torch.randn_like(mean)
        rows: Tensor = self._rows(z).sample()
        return rows

    def default_guide(self, *batch: Tensor) -> ForwardProcess:
        """The forward process, the only guide of this model."""
        return ForwardProcess(self, *batch)

    def initialize(self, x: Tensor) -> None:
        """Set P, the columns' means and standard deviations from rows `x` (N, P).

        Categories have one standard deviation for all columns.

        Raises:
            ValueError: for values that are not categories, or constant data.
        """
        self.infer_sizes(x)
        self._check_support(x)
        column_moments(x.double())
        means, unit = column_units(x, common=self.categories is not None)
        self.process.means.copy_(means)
        self.process.unit.copy_(unit)

    def _step(
        self, z: Tensor, gamma_s: Tensor, gamma_t: Tensor, eta: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        noise = self.noise(z, gamma_t)
        alpha, sigma = alpha_sigma(gamma_t)
        return step_back((z - sigma * noise) / alpha, noise, gamma_s, gamma_t, eta)

    def _rows(self, z: Tensor) -> Any:
        """p(x | z_0): event (P,)."""
        process = self.process
        gamma = process.gamma(process.means.new_zeros(()))
        u = z / alpha_sigma(gamma)[0]
        if self.categories is None:
            scale = process.unit * (0.5 * gamma).exp()
            return Normal(process.means + process.unit * u, scale).to_event(1)
        values = torch.arange(self.categories).to(u)
        levels = (values - process.means.unsqueeze(-1)) / process.unit.unsqueeze(-1)  # (P, C)
        logits = -0.5 * (u.unsqueeze(-1) - levels).square() * (-gamma).exp()
        return Categorical(logits=logits).to_event(1)

    def _check_support(self, x: Tensor) -> None:
        if self.categories is None:
            wrong, needed = ~x.isfinite(), "finite numbers"
        else:
            top = self.categories - 1
            wrong, needed = (x < 0) | (x > top) | (x != x.round()), f"integers 0 to {top}"
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"likelihood={self.likelihood!r} needs {needed}, but row {row}, column {column} "
                f"of x is {x[row, column].item():g} ({int(wrong.sum())} such values in all). "
                "Leave out rows with missing values; count a column's values for categories=C."
            )

    def batch_sizes(self, *batch: Tensor, name: str) -> tuple[int, ...]:
        """P of rows (N, P) of any dtype."""
        check_width(batch[0], self.observed, name)
        return (batch[0].shape[1],)

    def resize(self, observed: int, **like: Any) -> None:
        self.process.resize(observed)
        if self.denoiser is None:
            inputs = observed + 1 + 2 * FREQUENCIES
            self.network = MLP(inputs, observed, self.hidden, activation="silu")
            with torch.no_grad():  # initially near f = 0
                last: Any = self.network.layers[-1]
                last.weight.mul_(0.1)
                last.bias.zero_()

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (len(state["process.means"]),)


_ESTIMATE = {"is_auxiliary": True, "estimate": True}


def _nothing(like: Tensor) -> Tensor:
    """The observation of a factor: (..., 0)."""
    return like.new_empty((*like.shape, 0))


def _prior_cost(u: Tensor, gamma: Tensor) -> Tensor:
    """KL(N(α u, σ² I) ‖ N(0, I)) at γ: (...)."""
    alpha, sigma = alpha_sigma(gamma)
    return 0.5 * (sigma**2 + (alpha * u) ** 2 - 1 - 2 * sigma.log()).sum(-1)
