"""KL weight of models with summed-out sites."""

import math
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Categorical, Normal
from torch import Tensor

from ppl_lvm.estimators.objectives import objective
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models import GaussianMixtureVAE
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.kl_weight import KLWeight, refuse_summed_parents

pytestmark = pytest.mark.usefixtures("no_figures")


def _weights(x: Tensor) -> None:
    w = pyro.sample("w", Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        c = pyro.sample("c", Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
        pyro.sample("x", Normal(w + 2.0 * c, 1.0), obs=x)


def _w_guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(1.0))
    scale = pyro.param("scale", torch.tensor(0.5))
    pyro.sample("w", Normal(loc, scale))


def _clusters(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        c = pyro.sample("c", Bernoulli(torch.tensor(0.5)), infer={"enumerate": "parallel"})
        z = pyro.sample("z", Normal(c, 1.0))
        pyro.sample("x", Normal(z, 1.0), obs=x)


def _z_guide(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(x / 2, scale))


def _z_and_c_guide(x: Tensor) -> None:
    logits = pyro.param("logits", torch.tensor(0.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("c", Bernoulli(logits=logits))
        pyro.sample("z", Normal(x / 2, 1.0))


@pytest.mark.parametrize("name", [None, "ELBO", "IWAE(num_particles=2)"])
@pytest.mark.parametrize("weight", [{"kl_weight": 0.5}, {"kl_annealing": 2}])
def test_fit_rejects_a_weighted_latent_with_a_summed_parent(
    name: Any, weight: dict[str, Any]
) -> None:
    """Without the check, the package's ELBO weights the sum, and Pyro's fails inside."""
    with pytest.raises(ValueError, match=r"cannot scale 'z' by itself: it depends on 'c'.*guide"):
        fit(_clusters, _z_guide, torch.randn(6), objective=name, num_steps=2, **weight)


def test_fit_rejects_a_weighted_mixture_vae_before_writing_a_directory(tmp_path: Any) -> None:
    x, model = torch.bernoulli(torch.rand(20, 4)), GaussianMixtureVAE(2, 2, hidden=(4,))
    with pytest.raises(ValueError, match="cannot scale 'z' by itself"):
        fit(model, None, x, num_steps=2, kl_weight=2.0, directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fit_weights_a_latent_whose_parent_is_in_the_guide() -> None:
    fit(_clusters, _z_and_c_guide, torch.randn(6), num_steps=2, kl_weight=0.5)


PYRO = pytest.param("TraceEnum_ELBO(max_plate_nesting=1)", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [PYRO, "ELBO"])
def test_kl_weight_of_a_summed_sites_parent_equals_quadrature(name: str) -> None:
    """E_q Σ_n log Σ_c p(c) p(x_n | w, c) - β KL(q(w) ‖ p(w))."""
    x, beta, draws = torch.tensor([0.5, 2.0, 3.0]), 3.0, 400
    pair, weight = ModelGuidePair(_weights, _w_guide, objective(name)), KLWeight(frozenset({"c"}))
    pair.materialize_parameters(x)
    refuse_summed_parents(pair, frozenset({"c"}), x)
    weight.value.fill_(beta)
    model, guide = weight(pair.model), weight(pair.guide)
    with pair.scope(), torch.no_grad():
        pyro.set_rng_seed(0)
        bounds = -torch.tensor([pair.objective.loss(model, guide, x) for _ in range(draws)])
    w = torch.linspace(-4, 6, 4001)
    q, p = Normal(1.0, 0.5).log_prob(w), Normal(0.0, 1.0).log_prob(w)
    log_joint = torch.stack([Normal(w[:, None] + c, 1.0).log_prob(x) - math.log(2) for c in (0, 2)])
    likelihood = log_joint.logsumexp(0).sum(-1)
    exact = torch.trapezoid(q.exp() * (likelihood - beta * (q - p)), w).item()
    error = bounds.std().item() / draws**0.5
    assert bounds.mean().item() == pytest.approx(exact, abs=5 * error)
    unweighted = torch.trapezoid(q.exp() * (likelihood - (q - p)), w).item()
    assert abs(unweighted - exact) > 10 * error  # a wrong twin without the weight
