"""Posteriors without a normalization are named."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

from known_posteriors import flat_regression, linear_normal
from ppl_lvm import fit
from ppl_lvm.approximation.improper import improper
from ppl_lvm.approximation.laplace import laplace
from ppl_lvm.approximation.methods import approximate
from ppl_lvm.approximation.normal import DenseNormal
from ppl_lvm.approximation.unconstrained import LogDensity

X = torch.tensor([0.3, 1.2, -0.4, 0.8], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def flat(name: str) -> Tensor:
    return pyro.sample(name, dist.ImproperUniform(constraints.real, (), ()))


def only_the_sum(x: Tensor) -> None:
    mean = flat("a") + flat("b")
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def unused(x: Tensor) -> None:
    flat("a")
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def rising(x: Tensor) -> None:
    pyro.factor("up", flat("a"))
    unused_mean = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(unused_mean, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "names", "scale"),
    [
        (only_the_sum, "a and b", 1e9),
        (only_the_sum, "a and b", 1.0),
        (unused, "a", 1.0),
        (rising, "a", 3.0),
    ],
)
def test_direction_without_a_fall_names_its_sites(model, names, scale):
    target = LogDensity(model, (X,))
    normal = DenseNormal(torch.zeros(target.dim), scale * torch.eye(target.dim))
    assert f"does not fall along {names}, so that the posterior is improper" in improper(
        target, normal
    )


@pytest.mark.parametrize("known", [linear_normal(), flat_regression()], ids=["normal", "t"])
@pytest.mark.parametrize("factor", [0.01, 1.0, 100.0])
def test_proper_posterior_is_not_named_whatever_the_scale(known, factor):
    target = LogDensity(known.model, known.batch)
    start = torch.zeros(target.dim)
    if target.dim == 3 and known.log_evidence is None:
        start = torch.cat([known.mean, torch.tensor([50.0]).log()])
    scale = torch.tensor([1.0, 0.01, 1.0]) if known.log_evidence else torch.tensor([6.0, 6.0, 0.1])
    normal = laplace(target, start, scale)[0]
    wide = DenseNormal(normal.loc, factor * normal.scale_tril)
    assert improper(target, wide) == ""


def heavy(x: Tensor) -> None:
    pyro.sample("a", dist.Cauchy(0.0, 1.0))
    unused_mean = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(unused_mean, 1.0), obs=x)


def test_heavy_tail_is_proper():
    target = LogDensity(heavy, (X,))
    assert improper(target, DenseNormal(torch.zeros(2), 50 * torch.eye(2))) == ""


def test_verdict_of_an_improper_posterior_is_its_reason():
    result = approximate(
        LogDensity(only_the_sum, (X,)), "laplace", torch.Generator().manual_seed(0)
    )
    assert len(result.reasons) == 1
    assert "improper" in result.reasons[0]


def test_dadvi_of_an_improper_posterior_has_a_sentence():
    with pytest.raises(ValueError, match=r"method='dadvi': the objective has no strict maximum"):
        fit(only_the_sum, None, X, method="dadvi", progress=False)
