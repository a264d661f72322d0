"""What every class of `estimators.__all__` must meet, without anyone adding it here."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Categorical, Normal
from pyro.infer import config_enumerate
from torch import Tensor, nn

import ppl_lvm.estimators as estimators
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles import Particles
from ppl_lvm.programs.minibatch import ScaleDataPlate

CLASSES = [getattr(estimators, name) for name in estimators.__all__]
UNBIASED = [c for c in CLASSES if c.unbiased and c.sampling == "particles"]
ANY_SITE = [c for c in UNBIASED if c.requires == "any"]
Program = Callable[..., Any]


class Pair:
    """A small program with its guide, its data, its parameters and all cases of its draws."""

    rows_are_arguments = True

    def __init__(self, exact: Any, num_particles: int) -> None:
        gen = torch.Generator().manual_seed(3)
        self.exact, self.K = exact, num_particles
        self.p = nn.ParameterDict(
            {n: nn.Parameter(torch.randn(5, 4, generator=gen)) for n in ("theta", "phi", "mu")}
        )
        self.x = torch.randn(2, generator=gen)

    @property
    def args(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def parameters(self) -> list[Tensor]:
        return list(self.p.values())


class BernoulliPair(Pair):
    """z_n ~ Bernoulli, x_n ~ Normal; q sees x."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(logits=self.p["theta"][0, 0]))
            pyro.sample("x", Normal(self.p["theta"][1, 0] * z, self.p["theta"][2, 0].exp()), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=self.p["phi"][0, 0] + self.p["phi"][0, 1] * x))

    def cases(self) -> Iterator[dict[str, Tensor]]:
        return self.exact.cases(self.K, z=(2, (2,)))


class CategoricalPair(Pair):
    """c_n ~ Categorical(3), one datum."""

    def __init__(self, exact: Any, num_particles: int) -> None:
        super().__init__(exact, num_particles)
        self.x = self.x[:1]

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", Categorical(logits=self.p["theta"][0, :3]))
            pyro.sample("x", Normal(self.p["theta"][1][c.long()], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("c", Categorical(logits=self.p["phi"][0, :3]))

    def cases(self) -> Iterator[dict[str, Tensor]]:
        return self.exact.cases(self.K, c=(3, (1,)))


class TwoPlatesPair(Pair):
    """A latent per row and one per cell of an inner plate of two features."""

    def __init__(self, exact: Any, num_particles: int) -> None:
        super().__init__(exact, num_particles)
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

    def cases(self) -> Iterator[dict[str, Tensor]]:
        return self.exact.cases(self.K, z=(2, (1, 1)), u=(2, (1, 2)))


class SubsamplePair(BernoulliPair):
    """Two rows stand for ten: the toolkit's own scale."""

    def __init__(self, exact: Any, num_particles: int) -> None:
        super().__init__(exact, num_particles)
        model, guide = super().model, super().guide
        self.model = ScaleDataPlate(10)(model)  # type: ignore[method-assign]
        self.guide = ScaleDataPlate(10)(guide)  # type: ignore[method-assign]


class PyroSubsamplePair(BernoulliPair):
    """Pyro's own subsample_size: every choice of one row out of three is a case."""

    rows_are_arguments = False

    def __init__(self, exact: Any, num_particles: int) -> None:
        super().__init__(exact, num_particles)
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

    def cases(self) -> Iterator[dict[str, Tensor]]:
        return self.exact.with_rows(self.exact.cases(self.K, z=(2, (1,))), "data", 3, 1)


class GlobalPair(Pair):
    """A global Bernoulli and one per row: one joint weight, N/B inside."""

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

    def cases(self) -> Iterator[dict[str, Tensor]]:
        return self.exact.cases(self.K, g=(2, ()), z=(2, (2,)))


class MixedPair(Pair):
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

    def cases(self) -> Iterator[dict[str, Tensor]]:
        gen = torch.Generator().manual_seed(1)
        noise = {name: torch.randn(self.K, 2, generator=gen) for name in ("u", "v")}
        for case in self.exact.cases(self.K, c=(2, (2,))):
            yield {**case, **noise}


class DecodersPair(Pair):
    """A mixture of decoders: which one is the model's own site, summed out inside the bound."""

    def _model(self, x: Tensor) -> None:
        theta = self.p["theta"]
        with pyro.plate("data", len(x), dim=-1):
            d = pyro.sample("d", Categorical(logits=theta[0, :3]))
            z = pyro.sample("z", Bernoulli(logits=theta[1, 0]))
            pyro.sample("x", Normal(theta[2][d] * z + theta[3][d], 1.0), obs=x)

    def __init__(self, exact: Any, num_particles: int) -> None:
        super().__init__(exact, num_particles)
        self.model = config_enumerate(self._model)

    guide = BernoulliPair.guide
    cases = BernoulliPair.cases


class TemperedPair(BernoulliPair):
    """KL annealing by poutine.scale on the latent, and a mask on one observed row."""

    def model(self, x: Tensor) -> None:
        theta = self.p["theta"]
        with pyro.plate("data", len(x), dim=-1):
            with pyro.poutine.scale(scale=0.3):
                z = pyro.sample("z", Bernoulli(logits=theta[0, 0]))
            with pyro.poutine.mask(mask=torch.tensor([True, False])):
                pyro.sample("x", Normal(theta[1, 0] * z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.poutine.scale(scale=0.3):
            super().guide(x)


PAIRS = [
    BernoulliPair,
    CategoricalPair,
    TwoPlatesPair,
    SubsamplePair,
    PyroSubsamplePair,
    GlobalPair,
    MixedPair,
    DecodersPair,
    TemperedPair,
]


def gradients(cls: type[Estimator], pair: Any, **options: Any) -> tuple[Tensor, Tensor]:
    estimator = cls(num_particles=pair.K, **options)
    return pair.exact.gradients(
        estimator, pair.model, pair.guide, pair.args, pair.parameters(), pair.cases()
    )


@pytest.mark.filterwarnings("ignore:.* is no bound on log p:UserWarning")
@pytest.mark.parametrize(
    ("cls", "pair"),
    [(c, p) for c in ANY_SITE for p in PAIRS if p.rows_are_arguments or not c.requires_batch_rows],
)
def test_expected_gradient_is_the_targets(
    exact: Any, cls: type[Estimator], pair: type[Pair]
) -> None:
    estimate, target = gradients(cls, pair(exact, 2))
    assert target.abs().max() > 1e-5, "a zero target would be met by a zero gradient"
    assert (estimate - target).abs().max() < 1e-9 * max(1.0, float(target.abs().max()))


@pytest.mark.parametrize(
    ("cls", "num_particles"), [(c, K) for c in ANY_SITE for K in (1, 3) if c.min_particles <= K]
)
def test_expected_gradient_is_right_for_other_numbers_of_particles(
    exact: Any, cls: type[Estimator], num_particles: int
) -> None:
    estimate, target = gradients(cls, CategoricalPair(exact, num_particles))
    assert (estimate - target).abs().max() < 1e-9


@pytest.mark.parametrize("cls", ANY_SITE, ids=lambda c: c.__name__)
def test_a_loop_over_particles_gives_the_same_expectation(exact: Any, cls: type[Estimator]) -> None:
    estimate, target = gradients(cls, BernoulliPair(exact, 2), vectorize_particles=False)
    assert (estimate - target).abs().max() < 1e-9


# Deliberately wrong estimators: the test above must tell.


class SeesItsOwnWeight(estimators.LeaveOneOut):
    """The baseline is the mean of all weights, its own among them."""

    def surrogate(self, particles: Particles) -> Tensor:
        w = particles.log_w.detach()
        assert particles.score is not None
        pathwise = particles.log_p - particles.log_q_path
        return (pathwise + (w - w.mean(0)) * particles.score).mean(0)


class DropsAlpha(estimators.Renyi):
    """Rényi's K-sample score term left out, as in Pyro."""

    def surrogate(self, particles: Particles) -> Tensor:
        v = ((1 - self.alpha) * particles.log_w.detach()).softmax(0)
        factor = self.alpha / (1 - self.alpha)
        assert particles.score is not None
        return (v * (particles.log_p + factor * particles.score)).sum(0)


class ScalesInside(estimators.VIMCO):
    """N/B multiplies the log-weights, not the bound."""

    def surrogate(self, particles: Particles) -> Tensor:
        s = particles.scale
        inside = Particles(s * particles.log_p, s * particles.log_q, particles.score)
        return super().surrogate(inside) / s


class NoScoreTerm(estimators.VIMCO):
    """Only the gradient through log-weights: for discrete draws it points elsewhere."""

    def surrogate(self, particles: Particles) -> Tensor:
        return self.bound(particles)


@pytest.mark.parametrize(
    ("wrong", "pair"),
    [
        (SeesItsOwnWeight, CategoricalPair),
        (DropsAlpha, CategoricalPair),
        (ScalesInside, SubsamplePair),
        (NoScoreTerm, CategoricalPair),
        (NoScoreTerm, MixedPair),
    ],
)
def test_wrong_estimators_are_caught(exact: Any, wrong: Any, pair: Any) -> None:
    estimate, target = gradients(wrong, pair(exact, 2))
    assert (estimate - target).abs().max() > 1e-3


def test_a_pair_is_looked_at_once(exact: Any) -> None:
    pair, seen = BernoulliPair(exact, 2), []

    def model(x: Tensor) -> None:
        seen.append(len(x))
        pair.model(x)

    estimator = estimators.VIMCO(num_particles=2)
    estimator.loss(model, pair.guide, pair.x)
    looked = len(seen)
    estimator.loss(model, pair.guide, pair.x)
    estimator.loss(model, pair.guide, pair.x[:1])  # another number of rows is no other structure
    assert looked > 1
    assert len(seen) == looked + 2


@pytest.mark.parametrize("cls", ANY_SITE, ids=lambda c: c.__name__)
def test_a_joint_weight_under_subsampling_is_no_bound_and_says_so_once(
    exact: Any, cls: type[Estimator]
) -> None:
    pair = GlobalPair(exact, 2)
    if cls.requires_batch_rows:
        return
    estimator = cls(num_particles=2)
    if not cls.is_linear:
        with pytest.warns(UserWarning, match=rf"{cls.__name__} is no bound.*'g' is outside"):
            estimator.loss(pair.model, pair.guide, pair.x)
    estimator.loss(pair.model, pair.guide, pair.x)  # a warning now would be an error
