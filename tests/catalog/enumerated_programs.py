"""Programs with enumerated sites, and their exact log-densities.

A program has no sampled latents, so that its loss is -log p(x). `exact(x)` sums over the values by
hand. Parameters are constants, for equal numbers in every run, but for a location that trains.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from pyro.distributions import (
    Bernoulli,
    Categorical,
    Delta,
    LogNormal,
    MaskedMixture,
    Normal,
    Uniform,
)
from pyro.ops.indexing import Vindex
from torch import Tensor

ENUMERATE = {"enumerate": "parallel"}
N, P, C = 12, 4, 3
BITS = (torch.rand(N, P, generator=torch.Generator().manual_seed(1)) < 0.5).float()
REAL = torch.randn(N, generator=torch.Generator().manual_seed(2))
PI = torch.tensor([0.2, 0.3, 0.5])
THETA = torch.rand(C, P, generator=torch.Generator().manual_seed(3)) * 0.8 + 0.1
FLIP = torch.tensor([0.1, 0.8])
FORBIDDEN = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.6, 0.4], [0.0, 0.0, 1.0]]).log()
MEANS = torch.tensor([-1.0, 1.0, 0.0])


@dataclass(frozen=True)
class Enumerated:
    """A program, its data, and the exact log p of them."""

    model: Callable[[Tensor], None]
    x: Tensor
    exact: Callable[[Tensor], Tensor]


def bias() -> Tensor:
    """A parameter that starts at 0."""
    return pyro.param("bias", torch.tensor(0.0))


def bayes_right(x: Tensor) -> None:
    """Naive Bayes with the features at dim -1, to the right of the rows."""
    logits = THETA.logit() + bias()
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", Categorical(PI), infer=ENUMERATE)
        with pyro.plate("features", P, dim=-1):
            pyro.sample("x", Bernoulli(logits=Vindex(logits)[z, torch.arange(P)]), obs=x)


def bayes_left(x: Tensor) -> None:
    """Naive Bayes with the features at dim -2, to the left of the rows."""
    logits = THETA.logit() + bias()
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Categorical(PI), infer=ENUMERATE)
        with pyro.plate("features", P, dim=-2):
            index = torch.arange(P).unsqueeze(-1)
            pyro.sample("x", Bernoulli(logits=Vindex(logits)[z, index]), obs=x.T)


def bayes_unnamed_dims(x: Tensor) -> None:
    """Pyro chooses the dims of the plates."""
    logits = THETA.logit() + bias()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", Categorical(PI.expand(len(x), C)), infer=ENUMERATE)
        with pyro.plate("features", P):
            index = torch.arange(P).unsqueeze(-1)
            pyro.sample("x", Bernoulli(logits=Vindex(logits)[z, index]), obs=x.T)


def repeated(x: Tensor) -> None:
    """Three plates: rows, features and two equal repetitions."""
    logits = THETA.logit() + bias()
    with pyro.plate("data", len(x), dim=-3):
        z = pyro.sample("z", Categorical(PI), infer=ENUMERATE)
        with pyro.plate("features", P, dim=-2), pyro.plate("repetitions", 2, dim=-1):
            index = torch.arange(P).unsqueeze(-1)
            value = x.unsqueeze(-1).expand(-1, -1, 2)
            pyro.sample("x", Bernoulli(logits=Vindex(logits)[z, index]), obs=value)


def siblings(x: Tensor) -> None:
    """Two plates of features beside each other."""
    logits = THETA.logit() + bias()
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", Categorical(PI), infer=ENUMERATE)
        for name, index in (("first", torch.arange(2)), ("last", torch.arange(2, P))):
            with pyro.plate(name, 2, dim=-1):
                value = x[:, index]
                pyro.sample(f"x_{name}", Bernoulli(logits=Vindex(logits)[z, index]), obs=value)


def observers(x: Tensor) -> None:
    """Dawid and Skene: a true class per item, a confusion matrix per annotator."""
    logits = torch.stack([THETA[:2].T, 1 - THETA[:2].T], -1).log() + bias()  # (P, class, answer)
    with pyro.plate("data", len(x), dim=-2):
        c = pyro.sample("c", Categorical(PI[:2]), infer=ENUMERATE)
        with pyro.plate("annotators", P, dim=-1):
            answer = Categorical(logits=Vindex(logits)[torch.arange(P), c])
            pyro.sample("y", answer, obs=x.long())


def _bayes(x: Tensor, repetitions: int = 1) -> Tensor:
    by_class = Bernoulli(THETA).log_prob(x.unsqueeze(1)).sum(-1)  # (N, C)
    return (PI.log() + repetitions * by_class).logsumexp(-1).sum()


def _observers(x: Tensor) -> Tensor:
    by_class = Bernoulli(1 - THETA[:2]).log_prob(x.unsqueeze(1)).sum(-1)
    return (Categorical(PI[:2]).logits + by_class).logsumexp(-1).sum()


def two_levels(x: Tensor) -> None:
    """A class per row, and a latent bit per feature of each row."""
    logits = THETA.logit() + bias()
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", Categorical(PI), infer=ENUMERATE)
        with pyro.plate("features", P, dim=-1):
            bit = Bernoulli(logits=Vindex(logits)[z, torch.arange(P)])
            t = pyro.sample("t", bit, infer=ENUMERATE)
            pyro.sample("x", Bernoulli(FLIP[t.long()]), obs=x)


def _two_levels(x: Tensor) -> Tensor:
    answer = Bernoulli(FLIP).log_prob(x.unsqueeze(-1)).exp()  # (N, P, 2)
    bits = torch.stack([1 - THETA, THETA], -1)  # (C, P, 2)
    by_class = (bits * answer.unsqueeze(1)).sum(-1).log().sum(-1)
    return (PI.log() + by_class).logsumexp(-1).sum()


def columns(x: Tensor) -> None:
    """A switch per feature, shared by the rows inside it."""
    with pyro.plate("features", P, dim=-1):
        s = pyro.sample("s", Bernoulli(0.3), infer=ENUMERATE)
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("x", Bernoulli(logits=s - 0.5 + bias()), obs=x)


def _columns(x: Tensor) -> Tensor:
    states = torch.tensor([0.0, 1.0]).reshape(2, 1, 1)
    by_state = Bernoulli(logits=states - 0.5).log_prob(x).sum(1)  # (2, P)
    return (torch.tensor([0.7, 0.3]).log().unsqueeze(-1) + by_state).logsumexp(0).sum()


def excluded(x: Tensor) -> None:
    """A factor excludes the first state for positive rows."""
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", Categorical(PI[:2]), infer=ENUMERATE)
        pyro.factor("rule", torch.where((k == 0) & (x > 0), -math.inf, 0.0))
        pyro.sample("x", Normal(MEANS[k] + bias(), 1.0), obs=x)


def _excluded(x: Tensor) -> Tensor:
    joint = PI[:2].log() - PI[:2].sum().log() + Normal(MEANS[:2], 1.0).log_prob(x.unsqueeze(-1))
    joint[x > 0, 0] = -math.inf
    return joint.logsumexp(-1).sum()


def zeros(x: Tensor) -> None:
    """A point mass at 0 beside a normal distribution."""
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", Bernoulli(0.4), infer=ENUMERATE)
        point = Delta(torch.zeros(len(x)))
        wide = Normal(bias(), 1.0).expand([len(x)])
        pyro.sample("x", MaskedMixture(k.bool(), point, wide), obs=x.clamp(max=0.0))


def _zeros(x: Tensor) -> Tensor:
    x = x.clamp(max=0.0)
    density = 0.4 * Normal(0.0, 1.0).log_prob(x).exp() + 0.6 * (x == 0).float()
    return density.log().sum()


def bounded(x: Tensor) -> None:
    """Two uniform distributions, of which the first does not reach all rows."""
    width = torch.tensor([1.0, 4.0]) * bias().exp()
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", Bernoulli(0.4), infer=ENUMERATE).long()
        pyro.sample("x", Uniform(-width[k], width[k], validate_args=False), obs=x)


def _bounded(x: Tensor) -> Tensor:
    return (0.6 * (x.abs() < 1).float() / 2 + 0.4 / 8).log().sum()


def signs(x: Tensor) -> None:
    """Two supports: the real line, and the positive numbers, in which only some rows lie."""
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", Bernoulli(0.4), infer=ENUMERATE)
        real = Normal(bias(), 1.0).expand([len(x)])
        positive = LogNormal(bias(), 1.0).expand([len(x)])
        pyro.sample("x", MaskedMixture(k.bool(), real, positive), obs=x.abs())


def _signs(x: Tensor) -> Tensor:
    x = x.abs()
    real, positive = Normal(0.0, 1.0).log_prob(x), LogNormal(0.0, 1.0).log_prob(x)
    return (0.6 * real.exp() + 0.4 * positive.exp()).log().sum()


def one_way(x: Tensor) -> None:
    """A chain of three steps from state 0 that never goes back."""
    with pyro.plate("data", len(x), dim=-1):
        z = torch.tensor(0)
        for t in pyro.markov(range(3)):
            step = Categorical(logits=Vindex(FORBIDDEN)[z])
            z = pyro.sample(f"z_{t}", step, infer=ENUMERATE)
            pyro.sample(f"x_{t}", Normal(MEANS[z] + bias(), 1.0), obs=x[:, t])


def _one_way(x: Tensor) -> Tensor:
    alpha = torch.tensor([0.0, -math.inf, -math.inf]).expand(len(x), C)
    for t in range(3):
        alpha = (alpha.unsqueeze(-1) + FORBIDDEN).logsumexp(-2)
        alpha = alpha + Normal(MEANS, 1.0).log_prob(x[:, t, None])
    return alpha.logsumexp(-1).sum()


def shared_state(x: Tensor) -> None:
    """One state for all rows, which a row excludes."""
    s = pyro.sample("s", Categorical(PI[:2]), infer=ENUMERATE)
    with pyro.plate("data", len(x), dim=-1):
        pyro.factor("rule", torch.where((s == 0) & (x > 1), -math.inf, 0.0))
        pyro.sample("x", Normal(MEANS[s] + bias(), 1.0), obs=x)


def _shared_state(x: Tensor) -> Tensor:
    by_state = Normal(MEANS[:2], 1.0).log_prob(x.unsqueeze(-1)).sum(0)
    return (PI[1] / PI[:2].sum()).log() + by_state[1]


PROGRAMS = {
    "features to the right": Enumerated(bayes_right, BITS, _bayes),
    "features to the left": Enumerated(bayes_left, BITS, _bayes),
    "plates without dims": Enumerated(bayes_unnamed_dims, BITS, _bayes),
    "three plates": Enumerated(repeated, BITS, lambda x: _bayes(x, 2)),
    "sibling plates": Enumerated(siblings, BITS, _bayes),
    "annotators": Enumerated(observers, BITS, _observers),
    "two levels": Enumerated(two_levels, BITS, _two_levels),
    "columns": Enumerated(columns, BITS, _columns),
    "state excluded by a factor": Enumerated(excluded, REAL, _excluded),
    "point mass": Enumerated(zeros, REAL, _zeros),
    "support by state": Enumerated(bounded, REAL, _bounded),
    "two supports": Enumerated(signs, REAL, _signs),
    "forbidden transitions": Enumerated(one_way, BITS[:, :3], _one_way),
    "shared state": Enumerated(shared_state, REAL, _shared_state),
}
