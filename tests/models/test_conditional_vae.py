"""Conditional VAE against the exact conditional of the linear model."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ppl_lvm.checks import check
from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedNormal
from ppl_lvm.models.conditional_vae import ConditionalVAE
from ppl_lvm.particles import log_weights
from ppl_lvm.runs.directory import load_run


def _linear() -> tuple[ConditionalVAE, Tensor, Tensor]:
    x, y = torch.randn(6, 2).double() * 3 + 1, torch.randn(6, 3).double()
    model = ConditionalVAE(2, hidden=(), likelihood="gaussian")
    model.initialize(x, y)
    return model, x, y


def _log_evidence(model: ConditionalVAE, x: Tensor, y: Tensor, prior: Tensor) -> Tensor:
    """log p(y_n | x_n) for (m, log s) = `prior` (N, 2 D), from the normal that it is: (N,)."""
    decoder, linear = model.decoder, model.decoder.net.layers[0]
    W, V = (decoder.unit[:, None] * linear.weight).split([2, 2], dim=1)  # type: ignore[operator]
    loc, log_scale = prior.chunk(2, -1)
    seen = (x - x.mean(0)) / x.std(0, correction=0)
    mean = decoder.means + loc @ W.T + seen @ V.T + decoder.unit * linear.bias  # type: ignore[operator]
    noise = torch.diag(decoder.unit**2 * (decoder.scale**2 + decoder.floor))
    covariance = W @ torch.diag_embed((2 * log_scale).exp()) @ W.T + noise
    return MultivariateNormal(mean, covariance).log_prob(y).detach()


def test_conditional_vae_importance_weights_average_to_the_exact_conditional() -> None:
    model, x, y = _linear()
    w = log_weights(model, AmortizedNormal(model, x, y), x, y, num_particles=50_000).exp()
    error = w.std(0) / math.sqrt(len(w))
    seen = (x - x.mean(0)) / x.std(0, correction=0)
    exact = _log_evidence(model, x, y, model.prior(seen))
    assert ((w.mean(0) - exact.exp()).abs() < 5 * error).all()
    standard = _log_evidence(model, x, y, torch.zeros(6, 4).double())  # a prior that ignores x
    assert ((w.mean(0) - standard.exp()).abs() > 5 * error).any()


def test_conditional_vae_takes_one_tensor_or_two() -> None:
    model, x, y = _linear()
    guide = AmortizedNormal(model, x, y)
    torch.manual_seed(1)
    two = log_weights(model, guide, x, y, num_particles=4)
    model.given = 2
    torch.manual_seed(1)
    one = log_weights(model, guide, torch.cat([x, y], 1), num_particles=4)
    torch.testing.assert_close(one, two)


@pytest.mark.slow
def test_conditional_vae_prior_learns_to_depend_on_x() -> None:
    """y = ±x with a random sign: two modes."""
    torch.manual_seed(0)
    x = torch.rand(400, 1) + 1
    y = x * (torch.randint(2, (400, 1)) * 2 - 1) + 0.05 * torch.randn(400, 1)
    model = ConditionalVAE(1, hidden=(32,), likelihood="gaussian-shared")
    run = fit(model, AmortizedNormal, (x, y), num_steps=500)
    drawn = run.sample(400, (x, torch.zeros_like(y)), seed=0)["y"]
    assert ((drawn.abs() - x).abs() < 0.4).float().mean() > 0.85
    assert 0.2 < (drawn > 0).float().mean() < 0.8


@pytest.mark.slow
def test_conditional_vae_passes_check_and_its_run_loads(tmp_path: Path) -> None:
    data = load_data("digits(binarize=8)").subset(torch.arange(20))
    x = data.tensors[0]
    model = ConditionalVAE(2, 32, hidden=(8,))
    model.initialize(x)
    assert not list(check(model, AmortizedNormal(model, x), x))
    run = fit(
        "models/conditional_vae.py:ConditionalVAE",
        None,
        data,
        settings={"latent": 2, "given": 32, "hidden": (8,)},
        objective="DReG(num_particles=3)",
        num_steps=3,
        directory=tmp_path / "run",
    )
    again = load_run(tmp_path / "run")
    torch.testing.assert_close(again.encode(x)["z"], run.encode(x)["z"])
    assert again.sample(5)["y"].shape == (5, 32)
    assert run.to_arviz(x[:4], num_samples=2).posterior["z"].shape == (1, 2, 4, 2)
