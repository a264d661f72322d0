"""Small programs whose expectations are exact sums.

`EnumerableProgram`s have discrete guide sites and list all cases of K particles.
`GaussianProgram`s have Gaussian guide sites, for quadrature.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import Bernoulli, Categorical, Delta, Normal
from pyro.infer import config_enumerate
from pyro.poutine import mask, scale
from torch import Tensor, nn

from ppl_lvm.programs.minibatch import ScaleDataPlate
from ppl_lvm.testing.expectations import Case, enumerate_cases, with_subsamples


class EnumerableProgram:
    """A model and guide with data, parameters and all cases of the guide's draws.

    Attributes:
        rows_are_arguments: the arguments are the rows of the batch.
        num_particles: K of `cases`.
    """

    rows_are_arguments: ClassVar[bool] = True
    model: Any
    guide: Any

    def __init__(self, num_particles: int = 1) -> None:
        gen = torch.Generator().manual_seed(3)
        self.num_particles = num_particles
        self.p = nn.ParameterDict(
            {n: nn.Parameter(torch.randn(5, 4, generator=gen)) for n in ("theta", "phi", "mu")}
        )
        self.x = torch.randn(2, generator=gen)

    def parameters(self) -> list[Tensor]:
        return list(self.p.values())

    def cases(self) -> Iterator[Case]:
        """All draws of K particles."""
        raise NotImplementedError


class BernoulliProgram(EnumerableProgram):
    """z_n ~ Bernoulli, x_n ~ Normal; the guide depends on x."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=self.p["theta"][0, 0]))
            pyro.sample("x", Normal(self.p["theta"][1, 0] * z, self.p["theta"][2, 0].exp()), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=self.p["phi"][0, 0] + self.p["phi"][0, 1] * x))

    def cases(self) -> Iterator[Case]:
        return enumerate_cases(self.num_particles, z=(2, (2,)))


class CategoricalProgram(EnumerableProgram):
    """c_n ~ Categorical(3), x_n ~ Normal(θ_c, 1), one row."""

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles)
        self.x = self.x[:1]

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", Categorical(logits=self.p["theta"][0, :3]))
            pyro.sample("x", Normal(self.p["theta"][1][c.long()], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("c", Categorical(logits=self.p["phi"][0, :3]))

    def cases(self) -> Iterator[Case]:
        return enumerate_cases(self.num_particles, c=(3, (1,)))


class NestedPlatesProgram(EnumerableProgram):
    """A latent per row and one per cell of an inner plate of two features, one row."""

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles)
        self.x = torch.stack([self.x, self.x.flip(0)], -1)[:1]

    def model(self, x: Tensor) -> None:
        theta = self.p["theta"]
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", Bernoulli(logits=theta[0, :1]))
            with pyro.plate("features", 2, dim=-1):
                u = pyro.sample("u", Bernoulli(logits=theta[1, 0] * z + theta[2, :2]))
                pyro.sample("x", Normal(theta[3, :2] * u + theta[3, 2] * z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        phi = self.p["phi"]
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", Bernoulli(logits=phi[0, :1]))
            with pyro.plate("features", 2, dim=-1):
                pyro.sample("u", Bernoulli(logits=phi[1, 0] * z + phi[2, :2]))

    def cases(self) -> Iterator[Case]:
        return enumerate_cases(self.num_particles, z=(2, (1, 1)), u=(2, (1, 2)))


class MinibatchProgram(BernoulliProgram):
    """A batch of two rows out of ten, scaled by `ScaleDataPlate`."""

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles)
        self.model = ScaleDataPlate(10)(super().model)  # type: ignore[method-assign]
        self.guide = ScaleDataPlate(10)(super().guide)  # type: ignore[method-assign]


class SubsampleSizeProgram(BernoulliProgram):
    """Pyro's subsample_size: the cases contain every choice of one row out of three."""

    rows_are_arguments = False

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles)
        self.x = torch.tensor([0.3, -1.0, 2.0])

    def model(self, x: Tensor) -> None:
        theta = self.p["theta"]
        with pyro.plate("data", 3, subsample_size=1, dim=-1) as rows:
            z = pyro.sample("z", Bernoulli(logits=theta[0, 0]))
            pyro.sample("x", Normal(theta[1, 0] * z, theta[2, 0].exp()), obs=x[rows])

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", 3, subsample_size=1, dim=-1) as rows:
            phi = self.p["phi"]
            pyro.sample("z", Bernoulli(logits=phi[0, 0] + phi[0, 1] * x[rows]))

    def cases(self) -> Iterator[Case]:
        return with_subsamples(enumerate_cases(self.num_particles, z=(2, (1,))), "data", 3, 1)


class GlobalLatentProgram(EnumerableProgram):
    """A global Bernoulli and one per row: one joint log-weight with N/B inside."""

    rows_are_arguments = False

    def model(self, x: Tensor) -> None:
        theta = self.p["theta"]
        g = pyro.sample("g", Bernoulli(logits=theta[0, 0]))
        with pyro.plate("data", 6, subsample=torch.arange(2), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=theta[1, 0] * g))
            pyro.sample("x", Normal(theta[2, 0] * z + theta[2, 1] * g, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        phi = self.p["phi"]
        g = pyro.sample("g", Bernoulli(logits=phi[0, 0]))
        with pyro.plate("data", 6, subsample=torch.arange(2), dim=-1):
            pyro.sample("z", Bernoulli(logits=phi[1, 0] + phi[1, 1] * x + phi[2, 0] * g))

    def cases(self) -> Iterator[Case]:
        return enumerate_cases(self.num_particles, g=(2, ()), z=(2, (2,)))


class LocalBeforeGlobalProgram(GlobalLatentProgram):
    """The guide draws rows first; a factor outside the plate depends on all of them."""

    def model(self, x: Tensor) -> None:
        g = pyro.sample("g", Bernoulli(logits=self.p["theta"][0, 0]))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=self.p["theta"][1, 0] * g + x))
        pyro.factor("penalty", self.p["theta"][3, 0] * z.prod(-1, keepdim=True))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=self.p["phi"][0, 0] + self.p["phi"][0, 1] * x))
        pyro.sample("g", Bernoulli(logits=self.p["phi"][1, 0] * z.sum(-1, keepdim=True) - 0.2))


class BitsProgram(EnumerableProgram):
    """Two bits per row in one site; log p(x, z) is not linear in a bit."""

    def model(self, x: Tensor) -> None:
        theta = self.p["theta"]
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=theta[0, :2]).to_event(1))
            loc = (z * theta[1, :2]).sum(-1) + z.prod(-1) ** 2
            pyro.sample("x", Normal(loc, 0.7), obs=x)

    def guide(self, x: Tensor) -> None:
        phi = self.p["phi"]
        with pyro.plate("data", len(x), dim=-1):
            logits = phi[0, :2] + phi[1, :2] * x.unsqueeze(-1)
            pyro.sample("z", Bernoulli(logits=logits).to_event(1))

    def cases(self) -> Iterator[Case]:
        return enumerate_cases(self.num_particles, z=(2, (2, 2)))


class MixedSitesProgram(EnumerableProgram):
    """Reparameterized u, discrete c given u, reparameterized v given c; the noise is fixed."""

    def model(self, x: Tensor) -> None:
        theta = self.p["theta"]
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", Normal(theta[0, 0], 1.0))
            c = pyro.sample("c", Bernoulli(logits=theta[1, 0] * u))
            v = pyro.sample("v", Normal(theta[2, 0] * c + u, 1.0))
            pyro.sample("x", Normal(v + theta[3, 0] * c, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        phi = self.p["phi"]
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", Normal(phi[0, 0] + phi[0, 1] * x, phi[0, 2].exp()))
            c = pyro.sample("c", Bernoulli(logits=phi[1, 0] * u + phi[1, 1]))
            pyro.sample("v", Normal(phi[2, 0] * c + phi[2, 1] * u, phi[2, 2].exp()))

    def cases(self) -> Iterator[Case]:
        gen = torch.Generator().manual_seed(1)
        noise = {name: torch.randn(self.num_particles, 2, generator=gen) for name in ("u", "v")}
        for case in enumerate_cases(self.num_particles, c=(2, (2,))):
            yield {**case, **noise}


class EnumeratedSiteProgram(EnumerableProgram):
    """A mixture of decoders whose component is a site of the model alone, summed out exactly."""

    def _model(self, x: Tensor) -> None:
        theta = self.p["theta"]
        with pyro.plate("data", len(x), dim=-1):
            d = pyro.sample("d", Categorical(logits=theta[0, :3]))
            z = pyro.sample("z", Bernoulli(logits=theta[1, 0]))
            pyro.sample("x", Normal(theta[2][d] * z + theta[3][d], 1.0), obs=x)

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles)
        self.model = config_enumerate(self._model)

    guide = BernoulliProgram.guide
    cases = BernoulliProgram.cases


class TemperedProgram(BernoulliProgram):
    """KL annealing by poutine.scale on the latent, and a mask on one observed row."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with scale(scale=0.3):
                z = pyro.sample("z", Bernoulli(logits=self.p["theta"][0, 0]))
            with mask(mask=torch.tensor([True, False])):
                pyro.sample("x", Normal(self.p["theta"][1, 0] * z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with scale(scale=0.3):
            super().guide(x)


ENUMERABLE: tuple[type[EnumerableProgram], ...] = (
    BernoulliProgram,
    CategoricalProgram,
    NestedPlatesProgram,
    MinibatchProgram,
    SubsampleSizeProgram,
    GlobalLatentProgram,
    LocalBeforeGlobalProgram,
    MixedSitesProgram,
    EnumeratedSiteProgram,
    TemperedProgram,
)


class GaussianProgram(nn.Module):
    """One Gaussian latent per row; model and guide share a parameter."""

    sites: ClassVar[tuple[str, ...]] = ("z",)
    handler: ClassVar[Any] = nullcontext  # context of the latent

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.tensor(0.4))
        self.theta = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.phi = nn.Parameter(torch.tensor([0.2, -0.7]))

    @property
    def x(self) -> Tensor:
        return torch.tensor([0.7, -1.1])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with self.handler():
                z = pyro.sample("z", Normal(self.theta[0], 1.0))
            pyro.sample("x", Normal(self.shared * z + self.theta[1], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with self.handler(), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.shared * x + self.phi[0], self.phi[1].exp()))


class TwoLayerProgram(GaussianProgram):
    """z1, then z2 given z1, in the guide; the reverse order in the model."""

    sites = ("z1", "z2")

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", Normal(self.theta[0], 1.0))
            z1 = pyro.sample("z1", Normal(self.shared * z2, 1.0))
            pyro.sample("x", Normal(z1 + self.theta[1], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", Normal(self.phi[0] + 0.1 * x, self.phi[1].exp()))
            pyro.sample("z2", Normal(self.shared * z1, 0.8))


class TemperedGaussianProgram(GaussianProgram):
    """The latent's densities are raised to the power 0.6, as in KL annealing."""

    handler = staticmethod(partial(scale, scale=0.6))


class MaskedGaussianProgram(GaussianProgram):
    """The latent's densities are masked."""

    handler = staticmethod(partial(mask, mask=False))


class GlobalPointProgram(GaussianProgram):
    """A point-estimated scale outside the plate: a parameter of both densities."""

    def model(self, x: Tensor) -> None:
        s = pyro.sample("s", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(self.theta[0] * s, 1.0))
            pyro.sample("x", Normal(self.shared * z + s, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        s = pyro.sample("s", Delta(self.theta[1]))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.phi[0] + s * x, self.phi[1].exp()))


class LocalPointProgram(GaussianProgram):
    """A point estimate per row, before the latent that depends on it."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            s = pyro.sample("s", Normal(0.0, 1.0))
            z = pyro.sample("z", Normal(self.theta[0] * s, 1.0))
            pyro.sample("x", Normal(self.shared * z + s, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            s = pyro.sample("s", Delta(self.theta[1] * x))
            pyro.sample("z", Normal(self.phi[0] + s, self.phi[1].exp()))


GAUSSIAN: tuple[type[GaussianProgram], ...] = (
    GaussianProgram,
    TemperedGaussianProgram,
    MaskedGaussianProgram,
    GlobalPointProgram,
    LocalPointProgram,
)
