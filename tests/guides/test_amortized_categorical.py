"""AmortizedCategorical against the exact posterior of Bayes' rule."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import Adam
from torch import Tensor

from ppl_lvm.checks import check
from ppl_lvm.guides import AmortizedCategorical

CENTERS = torch.tensor([-1.0, 0.0, 2.0])


def _three(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(CENTERS[k], 1.0), obs=x)


def test_amortized_categorical_fits_the_posterior_of_bayes_rule() -> None:
    """The logits of equal-variance classes are linear in x: no hidden layer is needed."""
    x = torch.linspace(-2, 3, 11)
    guide = AmortizedCategorical(_three, x, hidden=(), enumerate="parallel")
    svi = SVI(_three, guide, Adam({"lr": 0.05}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(400):
        svi.step(x)
    q = poutine.trace(guide).get_trace(x).nodes["k"]["fn"]
    exact = (-0.5 * (x[:, None] - CENTERS) ** 2).softmax(-1)
    torch.testing.assert_close(q.probs, exact, atol=0.02, rtol=0)


def _families(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        b = pyro.sample("b", dist.Bernoulli(torch.full((4,), 0.5)).to_event(1))
        one = pyro.sample("one", dist.OneHotCategorical(torch.ones(3)))
        with pyro.plate("parts", 2, dim=-2):
            k = pyro.sample("k", dist.Categorical(torch.ones(5)))
        pyro.sample("x", dist.Normal(b.sum(-1) + one[..., 0] + k.sum(0), 1.0), obs=x)


def test_amortized_categorical_passes_check_with_every_family() -> None:
    x = torch.randn(6)
    issues = check(_families, AmortizedCategorical(_families, x), x)
    assert len(issues) == 0, str(issues)


def test_amortized_categorical_refuses_unsupported_models_with_a_remedy() -> None:
    def continuous(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def counts(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("n", dist.Poisson(2.0))

    def shared(x: Tensor) -> None:
        pyro.sample("k", dist.Bernoulli(0.5))

    x = torch.randn(3)
    with pytest.raises(ValueError, match=r"'z' ~ Normal is continuous. Use AmortizedNormal"):
        AmortizedCategorical(continuous, x)
    with pytest.raises(ValueError, match="'n' is Poisson"):
        AmortizedCategorical(counts, x)
    with pytest.raises(ValueError, match="'k' is global"):
        AmortizedCategorical(shared, x)
    with pytest.raises(ValueError, match="enumerate='paralel'"):
        AmortizedCategorical(_three, x, enumerate="paralel")
