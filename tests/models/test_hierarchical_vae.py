"""Hierarchical VAE against the linear model's evidence and posterior."""

import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.distributions import MultivariateNormal

from ppl_lvm.checks import check
from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedNormal, BottomUp, Ladder
from ppl_lvm.guides.ladder import _product
from ppl_lvm.models import VAE
from ppl_lvm.models.hierarchical_vae import HierarchicalVAE
from ppl_lvm.particles import log_weights
from ppl_lvm.runs.directory import load_run

GUIDES = [BottomUp, Ladder]


def _linear(latent: tuple[int, ...]) -> tuple[HierarchicalVAE, Tensor]:
    """A linear normal hierarchy in double precision, and rows it was not fitted to."""
    x = torch.randn(6, 3).double()
    model = HierarchicalVAE(latent, hidden=(), likelihood="gaussian")
    model.initialize(x)
    for layer, width in enumerate(latent[:-1], 1):
        setattr(model, f"scale{layer}", torch.full((width,), 0.6).double())
    return model, x


def _log_evidence(model: HierarchicalVAE, x: Tensor) -> Tensor:
    """log p(x_n) by carrying mean and covariance of the normal down the layers: (N,)."""
    mean, cov = torch.zeros(model.latent[-1]).double(), torch.eye(model.latent[-1]).double()
    for layer in range(len(model.latent) - 1, 0, -1):
        linear: Any = model.down[layer - 1].layers[0]  # type: ignore[index]
        scale = getattr(model, f"scale{layer}")
        mean = linear.weight @ mean + linear.bias
        cov = linear.weight @ cov @ linear.weight.T + torch.diag(scale**2)
    decoder = model.decoder
    linear = decoder.net.layers[0]
    W = decoder.unit.unsqueeze(-1) * linear.weight
    noise = decoder.unit**2 * (decoder.scale**2 + decoder.floor)
    mean = decoder.means + W @ mean + decoder.unit * linear.bias
    return MultivariateNormal(mean, W @ cov @ W.T + torch.diag(noise)).log_prob(x).detach()


@pytest.mark.parametrize("guide", GUIDES)
def test_hierarchical_vae_importance_weights_average_to_the_exact_evidence(guide: Any) -> None:
    model, x = _linear((3, 2, 2))
    w = log_weights(model, guide(model, x, hidden=(8,)), x, num_particles=50_000).exp()
    error = w.std(0) / math.sqrt(len(w))
    assert ((w.mean(0) - _log_evidence(model, x).exp()).abs() < 5 * error).all()


@pytest.mark.slow
@pytest.mark.parametrize("guide", [*GUIDES, AmortizedNormal])
def test_hierarchical_vae_dependent_layers_close_the_gap(guide: Any) -> None:
    """With one code a layer the posterior is a product of such normals; not of independent ones."""
    model, x = _linear((1, 1))
    with torch.no_grad():  # layers that depend on each other strongly
        model.down[0].layers[0].weight.fill_(1.5)  # type: ignore[union-attr, index]
    x = torch.randn(40, 3).double()
    q = guide(model, x, hidden=())
    optimizer = torch.optim.Adam(q.parameters(), lr=0.04)  # the model stays as it is
    for _ in range(250):
        optimizer.zero_grad()
        Trace_ELBO().differentiable_loss(model, q, x).backward()
        optimizer.step()
    gap = _log_evidence(model, x) - log_weights(model, q, x, num_particles=400).mean(0)
    if guide is AmortizedNormal:
        assert gap.mean() > 0.2
    else:
        assert gap.abs().mean() < 0.04


def test_ladder_guide_multiplies_normals() -> None:
    """The lower layer has the density of a product of two normals."""
    model, x = _linear((2, 2))
    guide = Ladder(model, x)
    pyro.set_rng_seed(3)
    nodes = pyro.poutine.trace(guide).get_trace(x).nodes
    (loc, log_scale), _ = guide._evidence(x)
    prior = model.prior(1, nodes["z2"]["value"]).base_dist
    points = torch.randn(5, 6, 2).double()
    reason = torch.distributions.Normal(loc, log_scale.exp())
    expected = reason.log_prob(points) + prior.log_prob(points)
    result = nodes["z1"]["fn"].base_dist.log_prob(points)
    torch.testing.assert_close((result - expected).std(0), torch.zeros(6, 2).double())


@pytest.mark.slow
def test_product_of_normals_has_a_gradient_where_one_is_very_narrow() -> None:
    """Precisions would overflow and make every parameter NaN."""
    loc, other = torch.tensor([1.5, -2.0, 0.3]), torch.tensor([0.5, 1.0, 4.0])
    log_scale = torch.tensor([-60.0, 0.2, 60.0], requires_grad=True)
    product = _product(loc, log_scale, other, torch.zeros(3))
    precision = log_scale[1].detach().double().mul(-2).exp()
    exact = (precision * loc[1] + other[1]) / (precision + 1)
    assert torch.allclose(product.loc, torch.stack([loc[0], exact.float(), other[2]]))
    assert math.isclose(
        float(product.scale[1].detach()), float((precision + 1) ** -0.5), rel_tol=1e-6
    )
    (gradient,) = torch.autograd.grad(product.scale.log().sum() + product.loc.sum(), log_scale)
    assert gradient.isfinite().all()
    by_precision = (1 / (log_scale.exp() ** -2 + 1)).sqrt()
    (wrong,) = torch.autograd.grad(by_precision.sum(), log_scale)
    assert wrong.isnan().any()


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES)
def test_hierarchical_vae_passes_check_and_its_run_loads(guide: Any, tmp_path: Path) -> None:
    data = load_data("digits(binarize=8)").subset(torch.arange(20))
    x = data.tensors[0]
    model = HierarchicalVAE((3, 2), hidden=(8,))
    model.initialize(x)
    assert not list(check(model, guide(model, x, hidden=(8,)), x))
    run = fit(
        "models/hierarchical_vae.py:HierarchicalVAE",
        f"ppl_lvm.guides:{guide.__name__}",
        data,
        settings={"latent": (3, 2), "hidden": (8,)},
        guide_settings={"hidden": (8,)},
        objective="IWAE(num_particles=3)",
        num_steps=3,
        directory=tmp_path / "run",
    )
    again = load_run(tmp_path / "run")
    assert again.encode(x)["z1"].shape == (20, 3)
    assert run.parameters().keys() == again.parameters().keys()
    assert sum("down" in name for name in run.parameters()) == 4  # the ladder's are the model's
    assert run.to_arviz(x[:4], num_samples=2).posterior["z2"].shape == (1, 2, 4, 2)
    assert (tmp_path / "run" / "pictures" / "samples.png").exists()


@pytest.mark.parametrize("guide", GUIDES)
def test_ladder_guide_rejects_models_without_layers(guide: Any) -> None:
    with pytest.raises(ValueError, match=r"VAE has none\. Use AmortizedNormal"):
        guide(VAE(2), torch.zeros(3, 2))
