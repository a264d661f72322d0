"""Exact sums over enumerated sites of the model."""

import math
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Categorical, Normal, constraints
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.ops.indexing import Vindex
from torch import Tensor

from ppl_lvm.estimators import ELBO
from ppl_lvm.particles import log_weights
from ppl_lvm.programs.minibatch import ScaleDataPlate

X = torch.linspace(-1.0, 2.0, 6).reshape(3, 2)
W = torch.tensor([[0.5, -1.0], [1.5, 0.3]])


@config_enumerate
def decoders(x: Tensor) -> None:
    heads = torch.stack([W, -W, W.T])
    with pyro.plate("data", len(x), dim=-1):
        d = pyro.sample("d", Categorical(torch.tensor([0.2, 0.3, 0.5])))
        z = pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))
        loc = (z.unsqueeze(-2) @ heads[d]).squeeze(-2)
        pyro.sample("x", Normal(loc, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("vectorize", [True, False])
def test_enumerated_site_is_summed_out_inside_log_weights(
    vectorize: bool, guide: Any, particles: Any
) -> None:
    p = particles(decoders, guide, X, vectorize_particles=vectorize)
    z = p.site_draws["z"].value
    heads = torch.stack([W, -W, W.T])
    log_x = Normal(torch.einsum("kbd,cdp->ckbp", z, heads), 1.0).log_prob(X).sum(-1)
    mixed = (log_x + torch.tensor([0.2, 0.3, 0.5]).log().reshape(3, 1, 1)).logsumexp(0)
    expected = mixed + (Normal(0.0, 1.0).log_prob(z) - Normal(X + 0.2, 0.5).log_prob(z)).sum(-1)
    assert p.log_w.shape == (4, 3)
    assert torch.allclose(p.log_w, expected, atol=1e-5)


@config_enumerate
def chain(y: Tensor) -> None:
    table = pyro.param(
        "table", torch.tensor([[0.7, 0.3], [0.2, 0.8]]), constraint=constraints.simplex
    )
    with pyro.plate("data", len(y), dim=-1):
        c = torch.zeros((), dtype=torch.long)
        for t in pyro.markov(range(y.shape[1])):
            c = pyro.sample(f"c{t}", Categorical(table[c]))
            pyro.sample(f"y{t}", Normal(c.float(), 1.0), obs=y[:, t])


def nothing(y: Tensor) -> None:
    pass


def test_enumerated_markov_chain_has_exact_evidence() -> None:
    y = torch.randn(4, 5)
    table = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    log_alpha = torch.full((4, 2), -math.inf)
    log_alpha[:, 0] = 0.0
    for t in range(5):
        moved = (log_alpha.unsqueeze(-1) + table.log()).logsumexp(1)
        log_alpha = moved + Normal(torch.arange(2.0), 1.0).log_prob(y[:, t : t + 1])
    expected = log_alpha.logsumexp(1)
    for K in (1, 3):
        log_w = log_weights(chain, nothing, y, num_particles=K)
        assert log_w.shape == (K, 4)
        assert torch.allclose(log_w, expected.expand(K, 4), atol=1e-5)
    with ScaleDataPlate(40):
        assert ELBO().loss(chain, nothing, y) == pytest.approx(
            -10 * float(expected.sum()), rel=1e-5
        )


def test_enumerated_chain_in_inner_plate_agrees_with_pyro() -> None:
    @config_enumerate
    def model(y: Tensor) -> None:
        weights = pyro.param("w", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
        with pyro.plate("data", 3, dim=-2):
            a = pyro.sample("a", Categorical(weights))
            with pyro.plate("features", 2, dim=-1):
                b = pyro.sample("b", Bernoulli(torch.tensor([0.2, 0.6])[a]))
                pyro.sample("y", Normal(b + a, 1.0), obs=y)

    expected = TraceEnum_ELBO(max_plate_nesting=2).loss(model, nothing, X)
    assert ELBO().loss(model, nothing, X) == pytest.approx(expected, rel=1e-5)


def test_global_enumerated_site_rejects_subsampling_scale() -> None:
    @config_enumerate
    def model(x: Tensor) -> None:
        c = pyro.sample("c", Bernoulli(0.3))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(c, 1.0), obs=x)

    x = X[:, 0]
    per_c = [Normal(c, 1.0).log_prob(x).sum() for c in (0.0, 1.0)]
    expected = torch.logaddexp(per_c[0] + math.log(0.7), per_c[1] + math.log(0.3))
    assert float(log_weights(model, nothing, x)) == pytest.approx(float(expected), rel=1e-5)
    with ScaleDataPlate(30), pytest.raises(ValueError, match=r"'c'.*scales are"):
        log_weights(model, nothing, x)


@pytest.mark.parametrize("make", [AutoDelta, AutoNormal])
def test_mixture_with_point_components_agrees_with_pyro(make: Any, guide: Any) -> None:
    @config_enumerate
    def mixture(x: Tensor) -> None:
        with pyro.plate("components", 2, dim=-1):
            loc = pyro.sample("loc", Normal(0.0, 2.0))
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", Normal(Vindex(loc.unsqueeze(-2))[..., c], 1.0), obs=x)

    x = X.reshape(-1)
    guide = make(pyro.poutine.block(mixture, expose=["loc"]))
    scaled, guided = ScaleDataPlate(60)(mixture), ScaleDataPlate(60)(guide)
    guide(x)
    ours, theirs = ELBO(), TraceEnum_ELBO(max_plate_nesting=1)
    ours.loss(scaled, guided, x)
    values = []
    for objective in (ours, theirs):
        pyro.set_rng_seed(4)
        values.append(objective.loss(scaled, guided, x))
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    columns = 6 if make is AutoDelta else 1
    assert log_weights(mixture, guide, x, num_particles=3).shape == (3, columns)
