"""Sites that log-densities read."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineTransform, ExpTransform
from torch import Tensor

from ppl_lvm.programs.signatures import signature

X = torch.linspace(0.1, 0.9, 6)
K = torch.arange(6).remainder(3)


def _a() -> Tensor:
    return pyro.sample("a", dist.Normal(0.0, 1.0))


def _b() -> Tensor:
    return pyro.sample("b", dist.LogNormal(0.0, 1.0))


def _ordered(a: Tensor, b: Tensor) -> None:
    pyro.sample("y", dist.OrderedLogistic(X * a, torch.tensor([-1.0, 0.0]) * b), obs=K)


def _mixture_of_family(a: Tensor, b: Tensor) -> None:
    weights = dist.Categorical(logits=torch.stack([a, -a]).expand(6, 2))
    parts = dist.Normal(torch.zeros(6, 2), b)
    pyro.sample("y", dist.MixtureSameFamily(weights, parts), obs=X)


def _masked_mixture(a: Tensor, b: Tensor) -> None:
    part = dist.Normal(a, 1.0).expand([6])
    pyro.sample("y", dist.MaskedMixture(X > 0.5, part, dist.LogNormal(0.0, b).expand([6])), obs=X)


def _transformed(a: Tensor, b: Tensor) -> None:
    transforms = [AffineTransform(a, b), ExpTransform()]
    pyro.sample(
        "y", dist.TransformedDistribution(dist.Normal(torch.zeros(6), 1.0), transforms), obs=X
    )


def _lazy_covariance(a: Tensor, b: Tensor) -> None:
    precision = torch.eye(2) * b
    pyro.sample(
        "y",
        dist.MultivariateNormal(a.expand(3, 2), precision_matrix=precision),
        obs=X.reshape(3, 2),
    )


def _compound(a: Tensor, b: Tensor) -> None:
    pyro.sample("y", dist.BetaBinomial(b, a.exp(), total_count=3), obs=K.float())


def _inflated(a: Tensor, b: Tensor) -> None:
    pyro.sample(
        "y",
        dist.ZeroInflatedNegativeBinomial(b, logits=torch.zeros(6), gate_logits=a),
        obs=K.float(),
    )


def _in_place(a: Tensor, b: Tensor) -> None:
    loc = torch.zeros(6)
    loc[:3] = a
    scale = torch.ones(6)
    scale.mul_(b)
    pyro.sample("y", dist.Normal(loc, scale), obs=X)


def _own_derivative(a: Tensor, b: Tensor) -> None:
    pyro.sample("y", dist.Normal(_Negate.apply(a).expand(6), b), obs=X)


class _Negate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return -value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -gradient


def _index(a: Tensor, b: Tensor) -> None:
    table = torch.arange(3.0)
    pyro.sample("y", dist.Normal(table[(a > 0).long()] + 0 * b, 1.0).expand([6]), obs=X)


def _weighted(a: Tensor, b: Tensor) -> None:
    with pyro.poutine.scale(scale=b), pyro.poutine.mask(mask=(a > 0).expand(6)):
        pyro.sample("y", dist.Normal(0.0, 1.0).expand([6]), obs=X)


def _factor(a: Tensor, b: Tensor) -> None:
    pyro.factor("y", (a * b).expand(6))


def _hidden_chain(a: Tensor, b: Tensor) -> None:
    moves = torch.stack([torch.stack([a, -a]), torch.zeros(2)])
    hmm = dist.DiscreteHMM(torch.zeros(2), moves, dist.Normal(torch.zeros(2), b), duration=6)
    pyro.sample("y", hmm, obs=X)


MODELS = [
    *(_ordered, _mixture_of_family, _masked_mixture, _transformed, _lazy_covariance, _compound),
    *(_inflated, _in_place, _own_derivative, _index, _weighted, _factor, _hidden_chain),
]


@pytest.mark.parametrize("body", MODELS)
def test_signature_names_the_sites_that_a_density_reads(body: Callable[..., None]) -> None:
    def model() -> None:
        a, b = _a(), _b()
        pyro.sample("unused", dist.Normal(0.0, 1.0))
        body(a, b)

    declared = signature(model)
    assert declared["y"].depends_on == ("a", "b")
    assert declared["a"].depends_on == declared["unused"].depends_on == ()


def test_signature_passes_dependence_on_through_deterministic_sites() -> None:
    def model() -> None:
        a = _a()
        twice = pyro.deterministic("twice", 2 * a)
        c = pyro.sample("c", dist.Normal(twice, 1.0))
        pyro.sample("y", dist.Normal(c, 1.0), obs=torch.tensor(0.0))

    declared = signature(model)
    assert declared["c"].depends_on == ("a",)
    assert declared["y"].depends_on == ("c",)  # direct dependence alone


@pytest.mark.parametrize("read", [Tensor.item, Tensor.tolist, Tensor.numpy, bool])
def test_signature_does_not_know_what_follows_a_python_number(read: Callable[..., Any]) -> None:
    def model() -> None:
        a = _a()
        b = pyro.sample("b", dist.Normal(a, 1.0))
        number = float(read(a.detach()))
        pyro.sample("y", dist.Normal(b + number, 1.0), obs=torch.tensor(0.0))

    declared = signature(model)
    assert declared["b"].depends_on == ("a",)
    assert declared["y"].depends_on is None
    assert "?" in str(declared)
