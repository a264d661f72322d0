"""Small programs of many kinds."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import (
    ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroParam
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn
from torch.distributions import constraints

Program = tuple[Callable[..., Any], Callable[..., Any], ELBO, tuple[Any, ...]]


class Decoder(PyroModule):
    def __init__(self, latent: int = 2, observed: int = 5, norm: bool = False) -> None:
        super().__init__()
        layers = [nn.Linear(latent, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.Tanh()]
        self.net = nn.Sequential(*layers, nn.Linear(8, observed))
        self.latent = latent
        to_pyro_module_(self.net)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self, latent: int = 2, observed: int = 5) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(observed, 8), nn.Dropout(0.2), nn.Linear(8, 2 * latent)
        )
        to_pyro_module_(self.encoder)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            m, s = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(m, s.exp()).to_event(1))


class BeliefNet(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2))
        self.net = PyroModule[nn.Linear](2, 5)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.a).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)


class BeliefGuide(PyroModule):
    def __init__(self, **baseline: Any) -> None:
        super().__init__()
        self.encoder = PyroModule[nn.Linear](5, 2)
        self.infer = {"baseline": baseline} if baseline else {}

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            d = dist.Bernoulli(logits=self.encoder(x)).to_event(1)
            pyro.sample("z", d, infer=dict(self.infer))


def binary(rows: int = 12) -> Tensor:
    return (torch.rand(rows, 5, generator=torch.Generator().manual_seed(1)) < 0.4).float()


def real(rows: int = 30) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(2))


class Mixture(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.weights = PyroParam(torch.ones(3) / 3, constraint=constraints.simplex)
        self.loc = nn.Parameter(torch.randn(3, 3))
        self.scale = PyroParam(torch.ones(3, 3), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(self.weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(self.loc[z], self.scale[z]).to_event(1), obs=x)


def nothing(*batch: Any) -> None:
    """A guide without sites."""


def hmm(y: Tensor) -> None:
    trans = pyro.param("trans", torch.ones(3, 3) / 3, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))
    with pyro.plate("sequences", len(y), dim=-1):
        z: Any = 0
        for t in pyro.markov(range(y.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]), infer={"enumerate": "parallel"})
            pyro.sample(f"y_{t}", dist.Normal(loc[z], 1.0), obs=y[:, t])


def regression(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Normal(x @ w, s), obs=y)


def subsampled(x: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x), subsample_size=7, dim=-1), pyro.poutine.scale(scale=0.5):
        batch = pyro.subsample(x, event_dim=1)
        z = pyro.sample("z", dist.Normal(m, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=batch)


def subsampled_guide(x: Tensor) -> None:
    m = pyro.param("m_loc", torch.zeros(3))
    pyro.sample("m", dist.Normal(m, 1.0).to_event(1))
    loc = pyro.param("z_loc", torch.zeros(len(x), 3))
    with pyro.plate("data", len(x), subsample_size=7, dim=-1):
        batch = pyro.subsample(loc, event_dim=1)
        pyro.sample("z", dist.Normal(batch, 1.0).to_event(1))


def correlations(x: Tensor) -> None:
    """The transform to a Cholesky factor of correlations selects entries by a mask."""
    scale = pyro.sample("scale", dist.HalfCauchy(torch.ones(3)).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
    tril = torch.diag_embed(scale) @ factor
    with pyro.plate("data", len(x)):
        normal: Any = dist.MultivariateNormal(torch.zeros(3), scale_tril=tril)
        pyro.sample("x", normal, obs=x)


def gamma_poisson(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def gamma_guide(x: Tensor) -> None:
    a = pyro.param("a", torch.ones(len(x)) * 2, constraint=constraints.positive)
    b = pyro.param("b", torch.ones(len(x)), constraint=constraints.positive)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("rate", dist.Gamma(a, b))


def guided_mixture(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor([-1.0, 0.5, 1.0]))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def zero_probability_guide(x: Tensor) -> None:
    """Some enumerated probabilities are exactly zero: Pyro leaves their costs out."""
    logits = pyro.param("logits", torch.zeros(len(x), 2))
    third = torch.zeros(len(x), 1)
    probs = torch.cat([logits.softmax(-1), third], -1)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Categorical(probs), infer={"enumerate": "parallel"})


def _regression_data() -> tuple[Tensor, Tensor]:
    return real(), real()[:, 0] * 2.0


def _auto(kind: Any, **options: Any) -> Callable[[], Program]:
    return lambda: (regression, kind(regression, **options), Trace_ELBO(), _regression_data())


def _vae(loss: Callable[[], ELBO], norm: bool = False) -> Callable[[], Program]:
    return lambda: (Decoder(norm=norm), Encoder(), loss(), (binary(),))


def _belief(loss: Callable[[], ELBO], **baseline: Any) -> Callable[[], Program]:
    return lambda: (BeliefNet(), BeliefGuide(**baseline), loss(), (binary(),))


def _reparam() -> Program:
    model = poutine.reparam(regression, config={"w": LocScaleReparam()})
    return model, AutoNormal(model), Trace_ELBO(), _regression_data()


PROGRAMS: dict[str, Callable[[], Program]] = {
    "vae": _vae(Trace_ELBO),
    "vae, 3 particles": _vae(lambda: Trace_ELBO(num_particles=3)),
    "vae, vectorized": _vae(
        lambda: Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    ),
    "vae, mean field": _vae(TraceMeanField_ELBO),
    "vae, graph": _vae(TraceGraph_ELBO),
    "vae, renyi": _vae(lambda: RenyiELBO(alpha=0.0, num_particles=3)),
    "vae, batch norm": _vae(Trace_ELBO, norm=True),
    "belief net": _belief(Trace_ELBO),
    "belief net, graph": _belief(TraceGraph_ELBO),
    "belief net, decaying average": _belief(
        TraceGraph_ELBO, use_decaying_avg_baseline=True, baseline_beta=0.9
    ),
    "belief net, wake-sleep": _belief(lambda: ReweightedWakeSleep(num_particles=3)),
    "mixture": lambda: (Mixture(), nothing, TraceEnum_ELBO(), (real(),)),
    "mixture, guide": lambda: (
        guided_mixture,
        config_enumerate(zero_probability_guide),
        TraceEnum_ELBO(),
        (real()[:, 0],),
    ),
    "hmm": lambda: (hmm, nothing, TraceEnum_ELBO(), (real(4),)),
    "subsampled": lambda: (subsampled, subsampled_guide, Trace_ELBO(), (real(),)),
    "gamma": lambda: (
        gamma_poisson,
        gamma_guide,
        Trace_ELBO(),
        (torch.tensor([0.0, 1.0, 3.0, 2.0]),),
    ),
    "correlations": lambda: (
        correlations,
        AutoNormal(correlations),
        Trace_ELBO(),
        (torch.randn(12, 3, generator=torch.Generator().manual_seed(0)),),
    ),
    "reparam": _reparam,
    "AutoNormal": _auto(AutoNormal),
    "AutoDelta": _auto(AutoDelta),
    "AutoDiagonalNormal": _auto(AutoDiagonalNormal),
    "AutoMultivariateNormal": _auto(AutoMultivariateNormal),
    "AutoLowRankMultivariateNormal": _auto(AutoLowRankMultivariateNormal, rank=2),
    "AutoIAFNormal": _auto(AutoIAFNormal, hidden_dim=[5]),
}
