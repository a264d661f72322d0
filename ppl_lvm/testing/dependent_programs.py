"""Small programs whose densities depend on enumerated sites and rows.

As in `exact_programs`, expectations are exact sums or quadratures.
"""

from collections.abc import Iterator

import pyro
import torch
from pyro.distributions import Bernoulli, Categorical, Normal
from pyro.infer import config_enumerate
from pyro.poutine import mask, scale
from torch import Tensor

from ppl_lvm.testing.exact_programs import (
    BernoulliProgram,
    EnumerableProgram,
    GaussianProgram,
)
from ppl_lvm.testing.expectations import Case, enumerate_cases


class SelectedLikelihoodProgram(BernoulliProgram):
    """An enumerated site selects the observed factor by a mask and tempers it by a scale."""

    def _model(self, x: Tensor) -> None:
        theta = self.p["theta"]
        with pyro.plate("data", len(x), dim=-1):
            d = pyro.sample("d", Categorical(logits=theta[0, :3]))
            z = pyro.sample("z", Bernoulli(logits=theta[1, 0]))
            with mask(mask=d > 0), scale(scale=0.5 * d + 0.5):
                pyro.sample("x", Normal(theta[2, 0] * z, 1.0), obs=x)

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles)
        self.model = config_enumerate(self._model)  # type: ignore[method-assign]


class PenaltyProgram(BernoulliProgram):
    """A factor outside the plate depends on the draws of all rows; one of its weights is zero."""

    rows_are_arguments = False  # the log-weight is joint

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles)
        self.p["theta"].data[3, 0] = 0.0

    def model(self, x: Tensor) -> None:
        theta = self.p["theta"]
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=theta[0, 0]))
            pyro.sample("x", Normal(theta[1, 0] * z, theta[2, 0].exp()), obs=x)
        pyro.factor(
            "penalty", (theta[3, :2] * torch.stack([z.sum(-1), z.prod(-1)], -1)).sum(-1, True)
        )


class NeighborProgram(BernoulliProgram):
    """The observation of a row depends on the latent of the row before."""

    rows_are_arguments = False  # the log-weight is joint

    def model(self, x: Tensor) -> None:
        theta = self.p["theta"]
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=theta[0, 0]))
            before = torch.cat([torch.zeros_like(z[..., :1]), z[..., :-1]], -1)
            pyro.sample("x", Normal(theta[1, 0] * z + theta[1, 1] * before, 1.0), obs=x)


class GlobalNeighborProgram(EnumerableProgram):
    """As `NeighborProgram`, with a global latent before the rows."""

    rows_are_arguments = False

    def model(self, x: Tensor) -> None:
        theta = self.p["theta"]
        g = pyro.sample("g", Bernoulli(logits=theta[0, 0]))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=theta[1, 0] * g))
            before = torch.cat([torch.zeros_like(z[..., :1]), z[..., :-1]], -1)
            pyro.sample("x", Normal(theta[2, 0] * z + theta[2, 1] * before + g, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        phi = self.p["phi"]
        pyro.sample("g", Bernoulli(logits=phi[0, 0]))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=phi[1, 0] + phi[1, 1] * x))

    def cases(self) -> Iterator[Case]:
        return enumerate_cases(self.num_particles, g=(2, ()), z=(2, (2,)))


DEPENDENT: tuple[type[EnumerableProgram], ...] = (
    SelectedLikelihoodProgram,
    PenaltyProgram,
    NeighborProgram,
    GlobalNeighborProgram,
)


class SelectedLikelihoodGaussianProgram(GaussianProgram):
    """An enumerated site selects the observed factor by a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.model = config_enumerate(self._model)  # type: ignore[method-assign]

    def _model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", Bernoulli(logits=self.theta[1]))
            z = pyro.sample("z", Normal(self.theta[0], 1.0))
            with mask(mask=k.bool()):
                pyro.sample("x", Normal(self.shared * z, 1.0), obs=x)


DEPENDENT_GAUSSIAN: tuple[type[GaussianProgram], ...] = (SelectedLikelihoodGaussianProgram,)
