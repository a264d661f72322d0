"""Programs of `speed.py`, in Pyro and in plain torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro.infer import ELBO, JitTrace_ELBO, JitTraceEnum_ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from ppl_lvm.benchmarks.handwritten import belief_net, chains, gm_vae, mixture, score, vae
from ppl_lvm.estimators import IWAE, VIMCO
from ppl_lvm.guides import AmortizedNormal
from ppl_lvm.models import VAE, GaussianMixture, GaussianMixtureVAE


@dataclass
class Program:
    """One timed program.

    Attributes:
        make: a fresh (model, guide).
        loss: makes the objective.
        jit: makes Pyro's torch.jit objective, or None.
        batch: arguments of model and guide.
        parameters, handwritten_loss: tensors, and their loss on the batch in plain torch, or None.
        many: steps per call of variants with several steps.
    """

    make: Callable[[], tuple[Any, Any]]
    loss: Callable[[], ELBO]
    jit: Callable[[], ELBO] | None
    batch: tuple[Tensor, ...]
    parameters: Callable[[], dict[str, Tensor]] | None = None
    handwritten_loss: Callable[..., Tensor] | None = None
    many: int = 32


class HiddenMarkovChain(PyroModule):
    """A hidden Markov model with S states: see `handwritten/chains.py`."""

    def __init__(self, states: int) -> None:
        super().__init__()
        rows = torch.full((states, states), 1.0 / states)
        self.transition = PyroParam(rows, constraint=dist.constraints.simplex)
        self.means = PyroParam(torch.linspace(-1, 1, states))

    def forward(self, y: Tensor) -> None:
        """The program; y is (B, T)."""
        transition, means = self.transition, self.means
        with pyro.plate("data", len(y), dim=-1):
            z: Any = 0
            for t in pyro.markov(range(y.shape[1])):
                # Each read of `self.` is a parameter statement, so read both once.
                state = dist.Categorical(transition[z])
                z = pyro.sample(f"z_{t}", state, infer={"enumerate": "parallel"})
                pyro.sample(f"y_{t}", dist.Normal(means[z], 1.0), obs=y[:, t])


def regression(x: Tensor, y: Tensor) -> None:
    """Bayesian linear regression: see `handwritten/chains.py`."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Normal(x @ w, s), obs=y)


class SpeedBeliefNet(PyroModule):
    """D hidden bits behind P bits, and below its guide."""

    def __init__(self, latent: int, observed: int) -> None:
        super().__init__()
        self.prior = torch.nn.Parameter(torch.zeros(latent))
        self.decoder = PyroModule[torch.nn.Linear](latent, observed)

    def forward(self, x: Tensor) -> None:
        """The program; x is (B, P)."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


class BeliefGuide(PyroModule):
    """q(z | x) of independent bits."""

    def __init__(self, latent: int, observed: int) -> None:
        super().__init__()
        self.encoder = PyroModule[torch.nn.Linear](observed, latent)

    def forward(self, x: Tensor) -> None:
        """The program; x is (B, P)."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))


def nothing(*batch: Tensor) -> None:
    """A guide without sites."""


def _auto_encoder(rows: int, particles: int) -> Program:
    x = (torch.rand(rows, 64) < 0.4).float()

    def make() -> tuple[Any, Any]:
        model = VAE(8, 64, (128,))
        return model, AmortizedNormal(model, x)

    def handwritten_loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        one = vae.elbo(params, x) if particles == 1 else vae.iwae(params, x, particles)
        return -one.sum()

    loss: Callable[[], ELBO] = Trace_ELBO if particles == 1 else lambda: IWAE(particles)
    jit = JitTrace_ELBO if particles == 1 else None
    many = 32 if particles == 1 else 8
    return Program(make, loss, jit, (x,), vae.parameters, handwritten_loss, many)


def _mixture_auto_encoder(rows: int, components: int) -> Program:
    x = (torch.rand(rows, 64) < 0.4).float()

    def make() -> tuple[Any, Any]:
        model = GaussianMixtureVAE(components, 8, 64, (128,))
        return model, AmortizedNormal(model, x)

    def handwritten_loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return -gm_vae.elbo(params, x).sum()

    start = lambda: gm_vae.parameters(components)  # noqa: E731
    return Program(make, TraceEnum_ELBO, JitTraceEnum_ELBO, (x,), start, handwritten_loss)


def _mixture(rows: int, columns: int, components: int) -> Program:
    centers = 4 * torch.randn(components, columns)
    x = centers[torch.randint(components, (rows,))] + torch.randn(rows, columns)

    def make() -> tuple[Any, Any]:
        model = GaussianMixture(components, columns)
        model.initialize(x)
        return model, nothing

    def handwritten_loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return -mixture.log_evidence(params, x).sum()

    start = lambda: mixture.parameters(x, components)  # noqa: E731
    many = 32 if rows < 10_000 else 2
    return Program(make, TraceEnum_ELBO, JitTraceEnum_ELBO, (x,), start, handwritten_loss, many)


def _chain(steps: int, states: int, sequences: int) -> Program:
    y = torch.randn(sequences, steps)
    return Program(
        lambda: (HiddenMarkovChain(states), nothing),
        TraceEnum_ELBO,
        JitTraceEnum_ELBO,
        (y,),
        lambda: chains.hmm_parameters(states),
        chains.hmm_loss,
    )


def _regression(rows: int, columns: int) -> Program:
    x = torch.randn(rows, columns)
    y = x @ torch.randn(columns) + 0.5 * torch.randn(rows)
    return Program(
        lambda: (regression, AutoMultivariateNormal(regression)),
        Trace_ELBO,
        JitTrace_ELBO,
        (x, y),
        lambda: chains.regression_parameters(columns),
        chains.regression_loss,
    )


def _belief_net(rows: int, particles: int) -> Program:
    x = (torch.rand(rows, 64) < 0.4).float()

    def handwritten_loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        z = belief_net.draw(params, x, particles)
        log_p, log_q = belief_net.log_p(params, x, z), belief_net.log_q(params, x, z)
        return -score.vimco(log_p, log_q).sum()

    return Program(
        lambda: (SpeedBeliefNet(16, 64), BeliefGuide(16, 64)),
        lambda: VIMCO(particles),
        None,
        (x,),
        lambda: belief_net.parameters(16, 64),
        handwritten_loss,
    )


PROGRAMS: dict[str, Callable[[], Program]] = {
    "vae 128": lambda: _auto_encoder(128, 1),
    "vae 1024": lambda: _auto_encoder(1024, 1),
    "iwae 50": lambda: _auto_encoder(128, 50),
    "mixture 150": lambda: _mixture(150, 4, 3),
    "mixture 100000": lambda: _mixture(100_000, 16, 32),
    "gm-vae": lambda: _mixture_auto_encoder(128, 10),
    "hmm 50": lambda: _chain(50, 8, 16),
    "regression": lambda: _regression(500, 20),
    "belief net": lambda: _belief_net(128, 5),
}
