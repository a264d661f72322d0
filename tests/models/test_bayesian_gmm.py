"""Bayesian mixture: joint density, vectorized particles, empty components."""

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.optim import Adam
from sklearn.datasets import load_iris
from torch import Tensor
from torch.distributions import Dirichlet, LKJCholesky, LogNormal, MultivariateNormal, Normal

from ppl_lvm.compiler import CompiledSVI
from ppl_lvm.guides import auto_guide
from ppl_lvm.models.bayesian_gmm import BayesianGaussianMixture


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_bayesian_gmm_bound_equals_the_hand_written_one(covariance: str) -> None:
    """log p(x, globals) with z summed out, less log q, under the guide's own draw."""
    x = 5 + 2 * torch.randn(30, 3, dtype=torch.float64)
    model = BayesianGaussianMixture(4, covariance=covariance)
    model.initialize(x)
    guide = auto_guide(model, x)
    drawn = poutine.trace(guide).get_trace(x)
    replayed = poutine.replay(guide, drawn)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, replayed, x)

    value = {name: node["value"] for name, node in drawn.nodes.items() if "value" in node}
    m, s = x.mean(0), x.std(0, correction=0)
    log_p = Dirichlet(torch.full((4,), 0.25).double()).log_prob(value["weights"])
    log_p += Normal(m, s).log_prob(value["means"]).sum()
    log_p += LogNormal((s / 2).log(), 1.0).log_prob(value["scales"]).sum()
    L = value["scales"].diag_embed()
    if covariance == "full":
        one = torch.tensor(1.0).double()
        log_p += LKJCholesky(3, one).log_prob(value["correlations"]).sum()
        L = L @ value["correlations"]
    log_joint = MultivariateNormal(value["means"], scale_tril=L).log_prob(x[:, None])
    log_p += (log_joint + value["weights"].log()).logsumexp(-1).sum()
    bound = log_p - drawn.log_prob_sum()
    assert loss == pytest.approx(-bound.item(), rel=1e-9)


@pytest.mark.slow
def test_bayesian_gmm_runs_under_vectorized_particles() -> None:
    """The mean of many particles in one pass is that of many passes."""
    x = torch.randn(12, 2)
    model = BayesianGaussianMixture(3)
    model.initialize(x)
    guide = auto_guide(model, x)
    losses: dict[bool, list[float]] = {}
    for vectorized in [False, True]:
        objective = TraceEnum_ELBO(20, max_plate_nesting=1, vectorize_particles=vectorized)
        losses[vectorized] = [objective.loss(model, guide, x) for _ in range(20)]
    one, many = (torch.tensor(losses[vectorized]) for vectorized in [False, True])
    error = ((one.var() + many.var()) / 20).sqrt()
    assert (one.mean() - many.mean()).abs() < 5 * error


@pytest.mark.slow
def test_bayesian_gmm_surplus_components_empty_on_iris() -> None:
    """Of ten components two or three keep a weight above 0.05; a dense prior keeps more."""
    x = torch.tensor(load_iris().data).float()
    assert {_surviving(x, seed, None) for seed in [0, 1]} <= {2, 3}
    assert _surviving(x, 1, 20.0) > 3


def _surviving(x: Tensor, seed: int, concentration: float | None) -> int:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model = BayesianGaussianMixture(10, concentration=concentration)
    model.initialize(x)
    guide = auto_guide(model, x)
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    svi = CompiledSVI(model, guide, Adam({"lr": 0.05}), loss, engine="captured")
    for _ in range(400):
        svi.step(x)
    q = poutine.trace(guide).get_trace(x).nodes["weights"]["fn"]
    return int((q.mean > 0.05).sum())


def test_bayesian_gmm_of_one_column_has_no_correlations() -> None:
    x = torch.randn(9, 1)
    model = BayesianGaussianMixture(3)
    model.initialize(x)
    assert "correlations" not in poutine.trace(model).get_trace(x).nodes
