"""Clustered VAE against quadrature over its code."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.distributions import Normal

from ppl_lvm.checks import check
from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedNormal
from ppl_lvm.models.gm_vae import GaussianMixtureVAE
from ppl_lvm.models.parts.decoders.cluster_codes import principal_codes
from ppl_lvm.particles import log_weights
from ppl_lvm.runs.directory import load_run

BITS = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])


def _log_joint(model: GaussianMixtureVAE, x: Tensor, z: Tensor) -> Tensor:
    """log π_c + log N(z; μ_c, σ_c) + log p(x | z), by hand, for z (G, N, 1): (G, N, K)."""
    logits = model.decoder.net(z)  # (G, N, P)
    log_x = (x * logits - torch.nn.functional.softplus(logits)).sum(-1)
    log_z = Normal(model.means[:, 0], model.scales[:, 0]).log_prob(z)  # (G, N, K)
    return model.weights.log() + log_z + log_x[..., None]


def _small() -> GaussianMixtureVAE:
    """Two bits, one code, three clusters apart."""
    model = GaussianMixtureVAE(3, 1, 2, hidden=(4,))
    model.weights = torch.tensor([0.2, 0.5, 0.3])
    model.means = torch.tensor([[-2.0], [0.5], [3.0]])
    model.scales = torch.tensor([[0.5], [1.0], [0.7]])
    return model


def test_gm_vae_importance_weights_average_to_the_quadrature_evidence() -> None:
    model = _small()
    guide = AmortizedNormal(model, BITS)
    z = torch.linspace(-12, 12, 4001)[:, None, None].expand(-1, 5, 1)
    exact = (_log_joint(model, BITS, z).logsumexp((0, 2)) + math.log(24 / 4000)).detach()
    w = log_weights(model, guide, BITS, num_particles=100_000).exp()  # (K, N)
    error = w.std(0) / math.sqrt(len(w))
    assert ((w.mean(0) - exact.exp()).abs() < 5 * error).all()
    forgetful = (_log_joint(model, BITS, z) - model.weights.log()).logsumexp((0, 2)).detach()
    wrong = (forgetful + math.log(24 / 4000)).exp()  # clusters of weight one each are caught
    assert ((w.mean(0) - wrong).abs() > 5 * error).any()


def test_gm_vae_bound_and_gradient_marginalize_the_cluster() -> None:
    model = _small()
    guide = AmortizedNormal(model, BITS)
    torch.manual_seed(1)
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide, BITS)
    torch.manual_seed(1)
    loc, log_scale = guide.encoder(BITS).chunk(2, -1)
    q = Normal(loc, log_scale.exp())
    z = q.rsample()
    by_hand = _log_joint(model, BITS, z).logsumexp(-1).sum() - q.log_prob(z).sum()
    torch.testing.assert_close(-loss, by_hand)
    leaves = [*model.parameters(), *guide.parameters()]
    for ours, exact in zip(
        torch.autograd.grad(-loss, leaves), torch.autograd.grad(by_hand, leaves), strict=True
    ):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)


def test_gm_vae_cluster_probabilities_follow_bayes_rule_at_the_code() -> None:
    run = fit(_small(), AmortizedNormal, BITS, num_steps=1, optimizer="SGD(lr=0.0)")
    with torch.no_grad():
        run.guide.encoder.net.layers[-1].bias[1] = -12.0  # type: ignore[attr-defined]
        run.guide.encoder.net.layers[-1].weight[1] = 0.0  # type: ignore[attr-defined]
        z = run.encode(BITS)["z"]
        exact = _log_joint(run.model, BITS, z[None])[0].softmax(-1)  # type: ignore[arg-type]
    torch.testing.assert_close(run.encode(BITS)["c"], exact, rtol=1e-3, atol=1e-4)


def test_gm_vae_initialize_separates_clusters_and_trains_the_decoder() -> None:
    data = load_data("blobs(n=300, components=4, dimensions=6)")
    x = data.tensors[0]
    model = GaussianMixtureVAE(4, 3, likelihood="gaussian-shared")
    model.initialize(x)
    z = principal_codes(x, 3)
    torch.testing.assert_close(z.T @ z / len(x), torch.eye(3).double(), atol=1e-6, rtol=0)
    log_z = Normal(model.means, model.scales).log_prob(z[:, None].float()).sum(-1)
    result = (log_z + model.weights.log()).argmax(1)
    assert adjusted_rand_score(data.labels, result) > 0.98
    missed = (model.decode(z.float()) - x).square().sum()
    assert missed < 0.2 * (x - x.mean(0)).square().sum()


@pytest.mark.slow
def test_gm_vae_clusters_digits_with_the_command_s_settings(tmp_path: Path) -> None:
    data = load_data("digits").subset(torch.arange(300))
    run = fit(
        "models/gm_vae.py:GaussianMixtureVAE",
        None,
        data,
        settings={"latent": 10, "likelihood": "gaussian-shared", "floor": 0.1},
        optimizer="Adam(lr=0.002)",
        num_epochs=20,
        batch_size=100,
        directory=tmp_path / "run",
        engine="auto",
    )
    result = run.encode(data)["c"].argmax(1)
    assert adjusted_rand_score(data.labels, result) > 0.5
    pictures = {path.stem for path in (tmp_path / "run" / "pictures").glob("*.png")}
    assert {"samples", "reconstructions", "latent_plane"} <= pictures
    again = load_run(tmp_path / "run")
    torch.testing.assert_close(again.encode(data)["z"], run.encode(data)["z"])


@pytest.mark.slow
def test_gm_vae_passes_check_and_exports_to_arviz() -> None:
    model = _small()
    assert not list(check(model, AmortizedNormal(model, BITS), BITS))
    run = fit(model, None, BITS, num_steps=2, objective="IWAE(num_particles=3)")
    posterior = run.to_arviz(BITS, num_samples=3).posterior
    assert posterior["c"].shape == (1, 3, 5)
    assert posterior["z"].shape == (1, 3, 5, 1)


def test_gm_vae_takes_the_dtype_of_the_data() -> None:
    model = GaussianMixtureVAE(2, 1, likelihood="gaussian-shared")
    x = torch.randn(20, 3).double()
    model.initialize(x)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    TraceEnum_ELBO(max_plate_nesting=1).loss(model, AmortizedNormal(model, x), x)


@pytest.mark.slow
def test_gm_vae_of_one_cluster_has_constant_weight(tmp_path: Path) -> None:
    x = torch.randn(30, 4)
    run = fit(
        GaussianMixtureVAE,
        None,
        x,
        settings={"components": 1, "latent": 2, "likelihood": "gaussian-shared", "hidden": (4,)},
        num_steps=2,
        directory=tmp_path / "run",
    )
    torch.testing.assert_close(run.encode(x)["c"], torch.ones(30, 1))
    assert not any("weights" in name for name in run.parameters())
    again: Any = load_run(tmp_path / "run")
    assert again.model.weights.tolist() == [1.0]
    assert again.to_arviz(x, num_samples=3).posterior["c"].values.max() == 0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(9, 4), "no more than 0 directions. Give other data"),
        (torch.randn(9, 1) * torch.ones(4), "no more than 1 directions. Use latent=1 or fewer"),
    ],
)
def test_gm_vae_rejects_rows_without_enough_directions(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        principal_codes(x, 2)
