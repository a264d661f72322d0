"""Pyro's examples in miniature, as (model, guide, loss, batch).

The larger ones come from the benchmark of packages, at small sizes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.contrib.gp import kernels, models
from pyro.distributions import constraints
from pyro.infer import (
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ppl_lvm.benchmarks.package_suite import examples as large

Program = tuple[Callable[..., Any], Callable[..., Any], Any, tuple[Any, ...]]
PARALLEL = {"enumerate": "parallel"}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def real(*size: int) -> Tensor:
    return torch.randn(*size, generator=_generator())


def bits(*size: int) -> Tensor:
    return (torch.rand(*size, generator=_generator()) < 0.4).float()


def nothing(*args: Any) -> None:
    """A guide without sites."""


# Hidden Markov models 0 to 6: batch (rows, steps, notes), lengths (rows,)


def _transitions(states: int, *parents: int) -> Tensor:
    probs: Tensor = pyro.sample(
        "transitions",
        dist.Dirichlet(0.9 * torch.eye(states) + 0.1).to_event(1)
        if not parents
        else dist.Dirichlet(torch.ones(*parents, states, states)).to_event(1 + len(parents)),
    )
    return probs


def hmm_0(x: Tensor, lengths: Tensor) -> None:
    """Sequences one after another."""
    probs = _transitions(2)
    notes = pyro.sample("notes", dist.Beta(0.1, 0.9).expand([2, x.shape[-1]]).to_event(2))
    columns = pyro.plate("columns", x.shape[-1], dim=-1)
    for i in pyro.plate("rows", len(x)):
        z: Any = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{i}_{t}", dist.Categorical(probs[z]), infer=PARALLEL)
            with columns:
                pyro.sample(f"x_{i}_{t}", dist.Bernoulli(notes[z.squeeze(-1)]), obs=x[i, t])


def hmm_1(x: Tensor, lengths: Tensor) -> None:
    """All sequences at once, shorter ones masked."""
    probs = _transitions(3)
    notes = pyro.sample("notes", dist.Beta(0.1, 0.9).expand([3, x.shape[-1]]).to_event(2))
    columns = pyro.plate("columns", x.shape[-1], dim=-1)
    with pyro.plate("rows", len(x), dim=-2):
        z: Any = 0
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                z = pyro.sample(f"z_{t}", dist.Categorical(probs[z]), infer=PARALLEL)
                with columns:
                    pyro.sample(f"x_{t}", dist.Bernoulli(notes[z.squeeze(-1)]), obs=x[:, t])


def hmm_2(x: Tensor, lengths: Tensor) -> None:
    """A note depends on the state and on itself at the step before."""
    probs = _transitions(3)
    notes = pyro.sample("notes", dist.Beta(0.1, 0.9).expand([3, 2, x.shape[-1]]).to_event(3))
    columns = pyro.plate("columns", x.shape[-1], dim=-1)
    with pyro.plate("rows", len(x), dim=-2):
        z, y = (torch.tensor(0).expand(1, 1), torch.tensor(0).expand(1, 1))
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                z = pyro.sample(f"z_{t}", dist.Categorical(probs[z]), infer=PARALLEL)
                with columns as column:
                    y = pyro.sample(f"x_{t}", dist.Bernoulli(notes[z, y, column]), obs=x[:, t])
                    y = y.long()


def hmm_3(x: Tensor, lengths: Tensor, coupled: bool = False) -> None:
    """Two chains, the second driven by the first where they are coupled."""
    w = pyro.sample("w", dist.Dirichlet(torch.ones(2, 2) + torch.eye(2)).to_event(1))
    v = pyro.sample("v", dist.Dirichlet(torch.ones(2, 2, 2)).to_event(2))
    notes = pyro.sample("notes", dist.Beta(0.1, 0.9).expand([2, 2, x.shape[-1]]).to_event(3))
    columns = pyro.plate("columns", x.shape[-1], dim=-1)
    with pyro.plate("rows", len(x), dim=-2):
        a: Any = torch.tensor(0)
        b: Any = torch.tensor(0)
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                a = pyro.sample(f"a_{t}", dist.Categorical(w[a]), infer=PARALLEL)
                row = v[a, b] if coupled else v[0, b]
                b = pyro.sample(f"b_{t}", dist.Categorical(row), infer=PARALLEL)
                with columns as column:
                    pyro.sample(f"x_{t}", dist.Bernoulli(notes[a, b, column]), obs=x[:, t])


class NeuralTones(PyroModule):
    """Model 5: a network gives the notes of a state and of the notes before."""

    def __init__(self, notes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 + notes, 5)
        self.output = nn.Linear(5, notes)

    def forward(self, x: Tensor, lengths: Tensor) -> None:
        pyro.module("tones", self)
        probs = _transitions(3)
        columns = pyro.plate("columns", x.shape[-1], dim=-1)
        with pyro.plate("rows", len(x), dim=-2):
            z: Any = 0
            before = torch.zeros_like(x[:, 0])
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    z = pyro.sample(f"z_{t}", dist.Categorical(probs[z]), infer=PARALLEL)
                    codes = one_hot(z.squeeze(-1), 3).float()
                    shape = torch.broadcast_shapes(codes.shape[:-1], before.shape[:-1])
                    both = [v.expand(*shape, v.shape[-1]) for v in (codes, before)]
                    logits = self.output(torch.relu(self.hidden(torch.cat(both, -1))))
                    with columns:
                        pyro.sample(f"x_{t}", dist.Bernoulli(logits=logits), obs=x[:, t])
                before = x[:, t]


def hmm_6(x: Tensor, lengths: Tensor) -> None:
    """Second order, with the transition as a parameter."""
    probs = pyro.param("second", lambda: torch.rand(2, 2, 2) + 0.5, constraint=constraints.positive)
    notes = pyro.sample("notes", dist.Beta(0.1, 0.9).expand([2, x.shape[-1]]).to_event(2))
    columns = pyro.plate("columns", x.shape[-1], dim=-1)
    with pyro.plate("rows", len(x), dim=-2):
        z: Any = torch.tensor(0)
        last: Any = torch.tensor(0)
        for t in pyro.markov(range(x.shape[1]), history=2):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                state = dist.Categorical(probs[last, z] / probs[last, z].sum(-1, True))
                last, z = z, pyro.sample(f"z_{t}", state, infer=PARALLEL)
                with columns as column:
                    pyro.sample(f"x_{t}", dist.Bernoulli(notes[z, column]), obs=x[:, t])


def _hmm(model: Any, nesting: int = 2) -> Callable[[], Program]:
    def make() -> Program:
        program = model(3) if isinstance(model, type) else model
        guide = AutoDelta(poutine.block(program, expose=["transitions", "notes", "w", "v"]))
        args = bits(3, 5, 3), torch.tensor([5, 3, 4])
        return program, guide, TraceEnum_ELBO(max_plate_nesting=nesting), args

    return make


# Regressions and hierarchies


def baseball(at_bats: Tensor, hits: Tensor) -> None:
    """Partial pooling of success probabilities."""
    m = pyro.sample("m", dist.Uniform(0, 1))
    kappa = pyro.sample("kappa", dist.Pareto(1.0, 1.5))
    with pyro.plate("players", len(hits)):
        phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        pyro.sample("hits", dist.Binomial(at_bats, phi), obs=hits)


class Regression(PyroModule):
    """Bayesian regression with priors in place of a layer's parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean: Tensor = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)
        return mean


def lkj(y: Tensor) -> None:
    """A covariance from scales and an LKJ factor of correlations."""
    theta = pyro.sample("theta", dist.HalfCauchy(torch.ones(y.shape[1])).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(y.shape[1], 1.0))
    tril = torch.mm(torch.diag(theta.sqrt()), factor)
    normal: Any = dist.MultivariateNormal(torch.zeros(y.shape[1]), scale_tril=tril)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", normal, obs=y)


def inclined_plane(times: Tensor) -> None:
    """The time down a plane with friction mu."""
    mu = pyro.sample("mu", dist.Beta(3.0, 4.0))
    slope = 0.5
    speed = 9.8 * (torch.sin(torch.tensor(slope)) - 0.3 * mu * torch.cos(torch.tensor(slope)))
    mean = torch.sqrt(2 * 2.0 / speed.clamp(min=0.1))
    with pyro.plate("times", len(times)):
        pyro.sample("time", dist.Normal(mean, 0.1), obs=times)


def sine(angles: Tensor) -> None:
    """Bivariate von Mises angles."""
    loc = pyro.sample("loc", dist.VonMises(0.0, 2.0).expand([2]).to_event(1))
    rho = pyro.sample("rho", dist.Beta(2.0, 5.0))
    concentration = pyro.sample("c", dist.HalfNormal(1.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(angles)):
        pyro.sample(
            "angles",
            dist.SineBivariateVonMises(
                phi_loc=loc[0],
                psi_loc=loc[1],
                phi_concentration=20 + concentration[0],
                psi_concentration=20 + concentration[1],
                weighted_correlation=rho,
            ),
            obs=angles,
        )


def sparse_gamma(x: Tensor) -> None:
    """Two layers of gamma variables, deep exponential family."""
    with pyro.plate("w_top", 6):
        w_top = pyro.sample("z_w_top", dist.Gamma(0.1, 0.3))
    with pyro.plate("w_bottom", 3 * x.shape[1]):
        w_bottom = pyro.sample("z_w_bottom", dist.Gamma(0.1, 0.3))
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", dist.Gamma(0.1, 0.1).expand([2]).to_event(1))
        mean = torch.mm(top, w_top.reshape(2, 3)) + 1e-3
        bottom = pyro.sample("bottom", dist.Gamma(0.1, 0.1 / mean).to_event(1))
        mean = torch.mm(bottom, w_bottom.reshape(3, -1)) + 1e-3
        pyro.sample("x", dist.Poisson(mean).to_event(1), obs=x)


def sparse_gamma_guide(x: Tensor) -> None:
    def gamma(name: str, *shape: int) -> dist.Gamma:
        a, m = (pyro.param(f"{part}_{name}", 0.5 * torch.ones(shape)) for part in ("a", "m"))
        alpha = nn.functional.softplus(a)
        return dist.Gamma(alpha, alpha / nn.functional.softplus(m))

    with pyro.plate("w_top", 6):
        pyro.sample("z_w_top", gamma("w_top", 6))
    with pyro.plate("w_bottom", 3 * x.shape[1]):
        pyro.sample("z_w_bottom", gamma("w_bottom", 3 * x.shape[1]))
    with pyro.plate("data", len(x)):
        pyro.sample("top", gamma("top", len(x), 2).to_event(1))
        pyro.sample("bottom", gamma("bottom", len(x), 3).to_event(1))


# Discrete latents


def mixture(x: Tensor) -> None:
    """Gaussian mixture with priors."""
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer=PARALLEL)
        pyro.sample("x", dist.Normal(locs[z], scale), obs=x)


def toy_mixture(x: Tensor) -> None:
    """Two coins in each row, one of which is seen: enumerated in model and guide."""
    p = pyro.param("p", torch.tensor([0.3, 0.6]), constraint=constraints.unit_interval)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(p[0]))
        y = pyro.sample("y", dist.Bernoulli(0.2 + 0.6 * z * p[1]))
        pyro.sample("x", dist.Bernoulli(0.1 + 0.8 * y), obs=x)


def toy_guide(x: Tensor) -> None:
    q = pyro.param("q", 0.5 * torch.ones(len(x)), constraint=constraints.unit_interval)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(q))
        pyro.sample("y", dist.Bernoulli(0.3 + 0.4 * z))


def capture_recapture(x: Tensor) -> None:
    """Cormack-Jolly-Seber: alive or not is enumerated along time."""
    phi, rho = pyro.sample("phi", dist.Uniform(0, 1)), pyro.sample("rho", dist.Uniform(0, 1))
    with pyro.plate("animals", len(x), dim=-1):
        z: Any = torch.ones(len(x))
        first = torch.zeros(len(x)).bool()
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=first):
                alive = first.float() * phi * z + (1 - first.float())
                z = pyro.sample(f"z_{t}", dist.Bernoulli(alive), infer=PARALLEL)
                pyro.sample(f"x_{t}", dist.Bernoulli(rho * z), obs=x[:, t])
            first = first | x[:, t].bool()


def mixed_hmm(steps: Tensor) -> None:
    """Chains of groups of individuals with random effects."""
    probs = pyro.param("probs", torch.eye(2) * 0.6 + 0.2, constraint=constraints.simplex)
    scale = pyro.param("step", torch.tensor([0.5, 2.0]), constraint=constraints.positive)
    with pyro.plate("group", 2, dim=-1):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        with pyro.plate("individual", steps.shape[1], dim=-2):
            y: Any = torch.tensor(0)
            for t in pyro.markov(range(len(steps))):
                y = pyro.sample(f"y_{t}", dist.Categorical(probs[y]), infer=PARALLEL)
                length = dist.LogNormal(effect, scale[y])
                pyro.sample(f"step_{t}", length, obs=steps[t])


def sir(data: Tensor) -> None:
    """A small epidemic, its discrete states enumerated one after another."""
    rate = pyro.sample("rate", dist.LogNormal(0.0, 0.5))
    s: Any = torch.tensor(3)
    i: Any = torch.tensor(1)
    for t in range(len(data)):  # no pyro.markov: s and i depend on all new cases before
        chance = 1 - (-rate * i / 4).exp()
        new = pyro.sample(f"new_{t}", dist.Categorical(_binomial(s, chance, 4)), infer=PARALLEL)
        s, i = s - new, i + new
        reported = dist.Binomial(4, (0.9 * i / 5).clamp(max=0.9))
        pyro.sample(f"obs_{t}", reported, obs=data[t])


def _binomial(total: Tensor, chance: Tensor, states: int) -> Tensor:
    """Probabilities of 0 to `states` - 1 successes, by formula."""
    k = torch.arange(float(states))
    n, p = total.unsqueeze(-1).float().clamp(min=0), chance.unsqueeze(-1)
    rest = (n - k).clamp(min=0)
    log = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(rest + 1)
    log = log + k * p.log() + rest * torch.log1p(-p)
    probs = torch.where(k <= n, log.exp(), torch.zeros(()))
    return probs / probs.sum(-1, True)


# Autoencoders and others


class ConditionalAutoencoder(PyroModule):
    """CVAE: the missing part of an image given the rest, with a baseline network's guess."""

    def __init__(self) -> None:
        super().__init__()
        self.guess, self.prior = nn.Linear(4, 4), nn.Linear(8, 4)
        self.generation, self.recognition = nn.Linear(2, 4), nn.Linear(8, 4)

    def model(self, x: Tensor, y: Tensor) -> None:
        pyro.module("cvae", self)
        with pyro.plate("data", len(x)):
            with torch.no_grad():
                guess = torch.sigmoid(self.guess(x))
            loc, scale = self.prior(torch.cat([x, guess], -1)).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))
            logits = self.generation(z)
            seen = (y != -1).float()
            missing = dist.Bernoulli(logits=logits, validate_args=False).mask(seen)
            pyro.sample("y", missing.to_event(1), obs=y)

    def guide(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, scale = self.recognition(torch.cat([x, y.clamp(min=0)], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def _cvae() -> Program:
    program, y = ConditionalAutoencoder(), bits(6, 4)
    y[0] = -1.0
    return program.model, program.guide, Trace_ELBO(), (real(6, 4), y)


def _gp(sparse: bool) -> Program:
    x = torch.linspace(0, 1, 12)
    y = torch.sin(6 * x)
    kernel = kernels.RBF(input_dim=1)
    gp: Any = (
        models.VariationalSparseGP(x, y, kernel, x[::4].clone(), pyro_gaussian())
        if sparse
        else models.GPRegression(x, y, kernel, noise=torch.tensor(0.1))
    )
    return gp.model, gp.guide, TraceMeanField_ELBO(), ()


def pyro_gaussian() -> Any:
    """The Gaussian likelihood of contrib.gp."""
    from pyro.contrib.gp.likelihoods import Gaussian

    return Gaussian(torch.tensor(0.1))


def _auto(model: Any, guide: Any, batch: Callable[[], tuple[Any, ...]], **options: Any) -> Any:
    def make() -> Program:
        program = model() if isinstance(model, type) else model
        discrete = options.get("loss", Trace_ELBO) is TraceEnum_ELBO
        visible = poutine.block(program, hide_fn=_is_enumerated) if discrete else program
        loss = TraceEnum_ELBO(max_plate_nesting=2) if discrete else Trace_ELBO()
        return program, guide(visible), loss, batch()

    return make


def _is_enumerated(site: dict[str, Any]) -> bool:
    return bool(site["infer"].get("enumerate"))


def _topics() -> Program:
    program = large.TopicModel(topics=3, words=8, documents=6, hidden=4)
    data = torch.randint(8, (5, 6), generator=_generator())
    return program.model, program.guide, TraceEnum_ELBO(max_plate_nesting=2), (data, 4)


def _semi_supervised(kind: Any, x: Tensor, labeled: bool) -> Program:
    program = kind(x.shape[1], 3, 2, 5)
    guide = config_enumerate(program.guide, "parallel", expand=True)
    y = one_hot(torch.arange(len(x)) % 3, 3).float() if labeled else None
    loss = Trace_ELBO() if labeled else TraceEnum_ELBO(max_plate_nesting=1)
    return program.model, guide, loss, (x, y)


def _air() -> Program:
    program = large.AttendInferRepeat(6, 3, 2, 8, steps=2)
    return program.model, program.guide, TraceGraph_ELBO(), (bits(4, 6, 6),)


def _deep_markov() -> Program:
    program = large.GatedMarkovModel(4, 2, 5)
    x, lengths = bits(3, 4, 4), torch.tensor([4, 2, 3])
    mask = torch.arange(4) < lengths.unsqueeze(-1)
    return program.model, program.guide, Trace_ELBO(), (x, x.flip(1), mask, lengths, 0.5)


def _strains() -> Program:
    args = torch.linspace(-1, 1, 4), bits(5, 3), real(4, 3, 5).abs().round()
    guide = AutoNormal(large.strain_growth, init_scale=0.01)
    return large.strain_growth, guide, Trace_ELBO(), args


def _counts() -> tuple[Tensor, Tensor]:
    return torch.tensor([10.0, 12.0, 9.0]), torch.tensor([3.0, 5.0, 2.0])


EXAMPLES: dict[str, Callable[[], Program]] = {
    "air": _air,
    "baseball": _auto(baseball, AutoDiagonalNormal, _counts),
    "bayesian regression": _auto(Regression, AutoNormal, lambda: (real(9, 3), real(9))),
    "capture-recapture": _auto(
        capture_recapture, AutoNormal, lambda: (bits(4, 4),), loss=TraceEnum_ELBO
    ),
    "cvae": _cvae,
    "deep Markov model": _deep_markov,
    "Gaussian process": partial(_gp, False),
    "sparse Gaussian process": partial(_gp, True),
    "gmm": _auto(mixture, AutoDelta, lambda: (real(8),), loss=TraceEnum_ELBO),
    "hmm 0": _hmm(hmm_0, 1),
    "hmm 1": _hmm(hmm_1),
    "hmm 2": _hmm(hmm_2),
    "hmm 3": _hmm(hmm_3),
    "hmm 4": _hmm(partial(hmm_3, coupled=True)),
    "hmm 5": _hmm(NeuralTones),
    "hmm 6": _hmm(hmm_6),
    "inclined plane": _auto(inclined_plane, AutoDiagonalNormal, lambda: (1 + 0.1 * real(5).abs(),)),
    "lda": _topics,
    "lkj": _auto(lkj, AutoNormal, lambda: (real(8, 3),)),
    "mixed hmm": _auto(mixed_hmm, AutoNormal, lambda: (real(4, 3, 2).exp(),), loss=TraceEnum_ELBO),
    "pyro-cov": _strains,
    "scanvi": lambda: _semi_supervised(large.AnnotatedCells, 1 + real(6, 5).abs().round(), False),
    "scanvi, labels": lambda: _semi_supervised(
        large.AnnotatedCells, 1 + real(6, 5).abs().round(), True
    ),
    "sine": _auto(sine, AutoDelta, lambda: (0.3 * real(6, 2),)),
    "sir": _auto(sir, AutoNormal, lambda: (torch.tensor([1.0, 2.0, 3.0]),), loss=TraceEnum_ELBO),
    "sparse gamma def": lambda: (
        sparse_gamma,
        sparse_gamma_guide,
        TraceMeanField_ELBO(),
        (torch.poisson(torch.full((4, 3), 2.0), generator=_generator()),),
    ),
    "ss_vae": lambda: _semi_supervised(large.SemiSupervised, bits(6, 5), False),
    "ss_vae, labels": lambda: _semi_supervised(large.SemiSupervised, bits(6, 5), True),
    "toy mixture": lambda: (
        toy_mixture,
        config_enumerate(toy_guide, "parallel"),
        TraceEnum_ELBO(max_plate_nesting=1),
        (bits(5),),
    ),
}
