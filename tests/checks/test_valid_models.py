"""Valid models, plain and unusual: no error and no warning."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide, config_enumerate
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.checks import check
from ppl_lvm.guides import auto_guide
from ppl_lvm.models import PPCA, VAE, BayesianGaussianMixture, FactorAnalysis, GaussianMixture

Pair = tuple[Callable[..., Any], Callable[..., Any], tuple[Tensor, ...]]


REAL = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


BITS = (REAL > 0).float()


COUNTS = torch.arange(8.0)
GAPS = REAL.where(REAL < 1, torch.nan)


def _nothing(*batch: Tensor) -> None:
    """A guide for models without latents to sample."""


def _normal(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0).expand([len(x)]), obs=x[:, 0])


def _normal_guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("w", dist.Normal(loc, scale))


def _ours(model: Any, x: Tensor) -> Pair:
    model.initialize(x)
    return model, auto_guide(model, x), (x,)


def _auto(model: Callable[..., Any], guide: type, *batch: Tensor) -> Pair:
    return model, guide(model), batch


class Regression(PyroModule):
    """Weights are PyroSamples of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        self.noise = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, x: Tensor, y: Tensor) -> None:
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=y)


def _hmm(x: Tensor) -> None:
    """Three steps of two states, enumerated."""
    move = pyro.param("move", torch.full((2, 2), 0.5), constraint=constraints.simplex)
    with pyro.plate("data", len(x), dim=-1):
        z: Any = 0
        for t in pyro.markov(range(3)):
            z = pyro.sample(
                f"z_{t}", dist.Categorical(Vindex(move)[..., z, :]), infer={"enumerate": "parallel"}
            )
            pyro.sample(f"x_{t}", dist.Normal(z.float(), 1.0), obs=x[:, t])


def _process(x: Tensor) -> None:
    """A Gaussian process: the rows are one event, without a plate on purpose."""
    distance = (x[:, None] - x).square().sum(-1)
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    matrix = torch.exp(-distance / scale) + 0.1 * torch.eye(8)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(8), matrix), obs=x[:, 0])


def _topics(x: Tensor) -> None:
    """Counts, a second plate, and an enumerated discrete site of each word."""
    with pyro.plate("topics", 2, dim=-1):
        phi = pyro.sample("phi", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("data", len(x), dim=-1):
        theta = pyro.sample("theta", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("words", 3, dim=-2):
            k = pyro.sample("k", dist.Categorical(theta), infer={"enumerate": "parallel"})
            word = x.argmax(-1).expand(3, -1)
            pyro.sample("word", dist.Categorical(phi[k]), obs=word)


def _subsampled(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=4, dim=-1) as index:
        pyro.sample("x", dist.Normal(w, 1.0).expand([4]), obs=x[index, 0])


def _masked(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    missing = x[:, 0] < 0
    with pyro.plate("data", len(x), dim=-1), pyro.poutine.mask(mask=~missing):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0].where(~missing, 0.0))


_NET = nn.Linear(3, 1)


def _sampled_discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x[:, 0])


def _sampled_discrete_guide(x: Tensor) -> None:
    net = pyro.module("net", _NET)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("k", dist.Bernoulli(logits=net(x).squeeze(-1)))


def _factor(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.factor("penalty", -(w**2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.deterministic("twice", 2 * w)
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])


def _masked_elements(x: Tensor) -> None:
    """Missing entries of a row, masked one by one inside the event."""
    x = x.masked_fill(x < -1, torch.nan)
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        likelihood = dist.Normal(w, torch.ones(3)).mask(~x.isnan()).to_event(1)
        pyro.sample("x", likelihood, obs=x.nan_to_num())


def _semi_supervised(x: Tensor, y: Tensor) -> None:
    """The first rows have labels; those of the others are enumerated."""
    with pyro.plate("data", len(x), dim=-1):
        known = torch.arange(len(x)) < 4
        likelihood = dist.Categorical(torch.ones(len(x), 2))
        with pyro.poutine.mask(mask=known):
            pyro.sample("y", likelihood, obs=y)
        with pyro.poutine.mask(mask=~known):
            k = pyro.sample("k", likelihood, infer={"enumerate": "parallel"})
        label = torch.where(known, y, k).float()
        pyro.sample("x", dist.Normal(label, 1.0), obs=x[:, 0])


def _matrix(x: Tensor) -> None:
    """Every entry is a separate observation: two plates."""
    with pyro.plate("columns", 3, dim=-2):
        v = pyro.sample("v", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(v, 1.0), obs=x.T)


def _dynamics(x: Tensor) -> None:
    """A chain of continuous states."""
    with pyro.plate("data", len(x), dim=-1):
        z: Any = torch.zeros(())
        for t in range(3):
            z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])


def _no_latent(x: Tensor) -> None:
    """A maximum-likelihood density."""
    loc = pyro.param("loc", torch.zeros(3))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def _hierarchy(x: Tensor) -> None:
    """Groups of effects around a common mean, and a group index per row."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", 4, dim=-1):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(effect[torch.arange(len(x)) % 4], 1.0), obs=x[:, 0])


def _poisson_regression(x: Tensor, n: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("n", dist.Poisson((x @ w).clamp(max=5).exp()), obs=n)


def _zero_inflated(n: Tensor) -> None:
    gate = pyro.sample("gate", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(n), dim=-1):
        pyro.sample("n", dist.ZeroInflatedPoisson(torch.tensor(2.0), gate=gate), obs=n)


def _heavy_tails(x: Tensor) -> None:
    """Student's t as a scale mixture."""
    with pyro.plate("data", len(x), dim=-1):
        precision = pyro.sample("precision", dist.Gamma(2.0, 2.0))
        pyro.sample("x", dist.Normal(0.0, precision.rsqrt()), obs=x[:, 0])


def _mixture_with_code(x: Tensor) -> None:
    """An enumerated discrete cause of a continuous one."""
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(k.float(), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def _ordered(x: Tensor, n: Tensor) -> None:
    cuts = pyro.sample("cuts", dist.Normal(0.0, 1.0).expand([2]).to_event(1)).sort().values
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("n", dist.OrderedLogistic(x[:, 0], cuts), obs=n)


def _covariance(x: Tensor) -> None:
    R = pyro.sample("R", dist.LKJCholesky(3, torch.tensor(2.0)))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), scale_tril=R), obs=x)


def _one_for_all(x: Tensor) -> None:
    """One value is observed of every row."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w + x[:, 0], 1.0), obs=torch.tensor(0.5))


def _two_causes(x: Tensor) -> None:
    """Two enumerated sites, each in a separate dimension."""
    table = torch.arange(6.0).reshape(2, 3)
    with pyro.plate("data", len(x), dim=-1):
        a = pyro.sample("a", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        b = pyro.sample("b", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(Vindex(table)[a.long(), b], 1.0), obs=x[:, 0])


def _one_hot_inside(x: Tensor) -> None:
    """An enumerated site through a one-hot vector and a product."""
    means = pyro.param("means", torch.randn(3, 3))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        loc = nn.functional.one_hot(k, 3).float() @ means
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def _many_values(x: Tensor) -> None:
    """As many values as rows, used without reshaping."""
    table = torch.arange(8.0)
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(torch.ones(8)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(table[k], 1.0), obs=x[:, 0])


def _classified(x: Tensor, k: Tensor) -> None:
    """Observed classes of whole numbers, and a matrix of weights as one event."""
    W = pyro.sample("W", dist.Normal(torch.zeros(3, 4), 1.0).to_event(2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("k", dist.Categorical(logits=x @ W), obs=k)


PAIRS: dict[str, Callable[[], Pair]] = {
    "plain functions": lambda: (_normal, _normal_guide, (REAL,)),
    "mixture": lambda: _ours(GaussianMixture(2), REAL),
    "tied mixture": lambda: _ours(GaussianMixture(2, covariance="tied"), REAL),
    "diagonal mixture": lambda: _ours(GaussianMixture(2, covariance="diag"), REAL),
    "spherical mixture": lambda: _ours(GaussianMixture(2, covariance="spherical"), REAL),
    "bayesian mixture": lambda: _ours(BayesianGaussianMixture(3), REAL),
    "vae, bits": lambda: _ours(VAE(2), BITS),
    "vae, normal": lambda: _ours(VAE(2, likelihood="gaussian"), REAL),
    "vae, one variance": lambda: _ours(VAE(2, likelihood="gaussian-shared"), REAL),
    "vae, categories": lambda: _ours(VAE(2, likelihood="categorical", categories=2), BITS),
    "PyroSample regression": lambda: _auto(Regression(), autoguide.AutoNormal, REAL, REAL[:, 0]),
    "hidden Markov": lambda: (_hmm, _nothing, (REAL,)),
    "Gaussian process": lambda: _auto(_process, autoguide.AutoNormal, REAL),
    "topics": lambda: (_topics, auto_guide(_topics, REAL), (REAL,)),
    "Pyro's subsampling": lambda: (_subsampled, _normal_guide, (REAL,)),
    "masked rows": lambda: (_masked, _normal_guide, (REAL,)),
    "sampled discrete": lambda: (_sampled_discrete, _sampled_discrete_guide, (REAL,)),
    "config_enumerate": lambda: (config_enumerate(_sampled_discrete), _nothing, (REAL,)),
    "factor": lambda: (_factor, _normal_guide, (REAL,)),
    "masked elements": lambda: (_masked_elements, _normal_guide, (REAL,)),
    "semi-supervised": lambda: (_semi_supervised, _nothing, (REAL, (REAL[:, 1] > 0).long())),
    "matrix": lambda: (_matrix, auto_guide(_matrix, REAL), (REAL,)),
    "dynamics": lambda: (_dynamics, auto_guide(_dynamics, REAL), (REAL,)),
    "no latent": lambda: (_no_latent, _nothing, (REAL,)),
    "one row": lambda: (_normal, _normal_guide, (REAL[:1],)),
    "hierarchy": lambda: (_hierarchy, auto_guide(_hierarchy, REAL), (REAL,)),
    "Poisson regression": lambda: _auto(_poisson_regression, autoguide.AutoNormal, REAL, COUNTS),
    "zero-inflated": lambda: (_zero_inflated, auto_guide(_zero_inflated, COUNTS), (COUNTS,)),
    "heavy tails": lambda: (_heavy_tails, auto_guide(_heavy_tails, REAL), (REAL,)),
    "mixture with a code": lambda: (
        _mixture_with_code,
        auto_guide(_mixture_with_code, REAL),
        (REAL,),
    ),
    "ordered classes": lambda: _auto(
        _ordered, autoguide.AutoNormal, REAL, torch.arange(8).remainder(3)
    ),
    "covariance": lambda: (_covariance, auto_guide(_covariance, REAL), (REAL,)),
    "one column": lambda: _ours(BayesianGaussianMixture(2), REAL[:, :1]),
    "one value for all rows": lambda: (_one_for_all, _normal_guide, (REAL,)),
    "two causes": lambda: (_two_causes, _nothing, (REAL,)),
    "one-hot inside": lambda: (_one_hot_inside, _nothing, (REAL,)),
    "as many values as rows": lambda: (_many_values, _nothing, (REAL,)),
    "classification": lambda: _auto(
        _classified, autoguide.AutoNormal, REAL, torch.arange(8).remainder(4)
    ),
    "factor analysis with gaps": lambda: _ours(FactorAnalysis(2), GAPS),
    "principal components with gaps": lambda: _ours(PPCA(2), GAPS),
}


@pytest.mark.parametrize("name", PAIRS)
def test_check_passes_a_valid_model_without_warnings(name: str) -> None:
    model, guide, batch = PAIRS[name]()
    issues = check(model, guide, *batch)
    assert [str(f) for f in issues if f.severity != "note"] == []
