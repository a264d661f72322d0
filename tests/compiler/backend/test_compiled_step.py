"""Compiled steps with the compiler's own random numbers: the same in distribution, no others."""

import math
from functools import partial

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppl_lvm.compiler import CompiledSVI

STEPS = 3000


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Normal(0.0, 1.0))
        c = pyro.sample("c", Bernoulli(0.4))
        pyro.sample("x", Normal(z + c, 1.0), obs=x)


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.3))
    p = pyro.param("p", torch.tensor(0.2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(loc, 0.8))
        pyro.sample("c", Bernoulli(p.expand(len(x))))


def losses(same_random: bool | None, seed: int = 0) -> Tensor:
    """Of steps that do not move: draws of one distribution."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    svi = CompiledSVI(
        model,
        guide,
        partial(torch.optim.SGD, lr=0.0),
        Trace_ELBO(),
        engine="captured" if same_random is None else "compiled",
        same_random=bool(same_random),
    )
    x = torch.linspace(-1, 2, 4)
    return torch.tensor([svi.step(x) for _ in range(STEPS)], dtype=torch.float64)


def apart(a: Tensor, b: Tensor) -> float:
    """How many standard errors the means and the variances of draws are apart, at most."""
    found, m = [], a.mean()
    for u, v in ((a, b), ((a - m) ** 2, (b - m) ** 2)):
        error = math.sqrt(float(u.var() / len(u) + v.var() / len(v)))
        found.append(abs(float(u.mean() - v.mean())) / error)
    return max(found)


@pytest.mark.slow
def test_the_compilers_own_random_numbers_are_the_same_in_distribution() -> None:
    eager, own = losses(None), losses(False)
    assert apart(eager, own) < 5
    assert not torch.allclose(eager[10:], own[10:])  # they are others,
    assert len(own[10:].unique()) > 0.9 * (STEPS - 10)  # new at each step,
    assert abs(float(torch.corrcoef(torch.stack([own[10:-1], own[11:]]))[0, 1])) < 5 / STEPS**0.5
    assert torch.equal(own, losses(False))  # and the seed's
    assert not torch.equal(own, losses(False, seed=1))


def test_a_wrong_distribution_would_be_seen() -> None:
    eager = losses(None)
    assert apart(eager, eager.mean() + 1.2 * (eager - eager.mean())) > 5
    assert apart(eager, eager + 0.4) > 5
