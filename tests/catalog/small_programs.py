"""Small programs with known answers, shared by tests."""

from typing import Any

import pyro
import torch
from pyro.distributions import Normal, Poisson
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints


class Factor(PyroModule):
    """z_n ~ N(0, 1), x_n ~ N(w z_n + b, s): log p(x_n) = log N(x_n; b, w wᵀ + s² I)."""

    def __init__(self, observed: int = 3) -> None:
        super().__init__()
        self.observed = observed
        self.w = nn.Parameter(torch.linspace(0.5, 1.5, observed))
        self.b = nn.Parameter(torch.zeros(observed))
        self.s = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("x", Normal(z * self.w + self.b, self.s).to_event(1), obs=x)


class FactorGuide(PyroModule):
    """q(z_n | x_n) = N(a x_n + c, spread): the family of Factor's posterior."""

    def __init__(self, observed: int = 3) -> None:
        super().__init__()
        self.observed = observed
        self.encoder = nn.Linear(observed, 1)
        self.spread = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.encoder(x), self.spread).to_event(1))


def factor_data(n: int = 200) -> Tensor:
    """n rows (n, 3) of one factor with noise, the same at every call."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(n, 1, generator=generator)
    return z * torch.tensor([2.0, -1.0, 0.5]) + torch.randn(n, 3, generator=generator)


class Mean(PyroModule):
    """A global latent: m ~ N(0, 1), x_n ~ N(m, 1), with posterior N(Σx / (N+1), 1 / (N+1))."""

    def forward(self, x: Tensor) -> None:
        m = pyro.sample("m", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(m, 1.0), obs=x)


class MeanGuide(PyroModule):
    """q(m) = N(loc, scale)."""

    def __init__(self, loc: float = 0.0, scale: float = 0.5) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(loc))
        self.scale = PyroParam(torch.tensor(scale), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        pyro.sample("m", Normal(self.loc, self.scale))


class FixedDraw(Trace_ELBO):
    """The ELBO with the same random numbers at every step, so that batches can be compared."""

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        torch.manual_seed(11)
        return super().loss_and_grads(model, guide, *args, **kwargs)


class Counts(PyroModule):
    """x_n ~ Poisson(rate), two columns: what is no whole number has no probability."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = PyroParam(torch.tensor([1.0, 2.0]), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Poisson(self.rate).to_event(1), obs=x)


class Exploding(PyroModule):
    """x_n ~ N(log m, 1): not a number once m has fallen below 0."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(torch.log(self.m), 1.0), obs=x)


def nothing(x: Tensor) -> None:
    """A guide without sites."""
