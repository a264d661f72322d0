"""Bits behind columns, against the sum over all 2^D codes."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_lvm import estimators
from ppl_lvm.checks import check
from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedCategorical
from ppl_lvm.models.bernoulli_vae import BernoulliVAE
from ppl_lvm.particles import log_weights
from ppl_lvm.runs.directory import load_run

BITS = (torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()


def _pair() -> tuple[BernoulliVAE, AmortizedCategorical]:
    model = BernoulliVAE(3, 4, hidden=(5,))
    with torch.no_grad():
        model.a.copy_(torch.tensor([-1.0, 0.5, 1.0]))
    return model, AmortizedCategorical(model, BITS, hidden=(5,))


def _tables(model: BernoulliVAE, guide: AmortizedCategorical) -> tuple[Tensor, Tensor]:
    """log p(x_n, z) and log q(z | x_n) of all eight codes, by hand: (8, N) each."""
    z = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))  # (8, 3)
    log_prior = -torch.nn.functional.softplus(torch.where(z == 1, -model.a, model.a)).sum(-1)
    logits = model.decoder.net(2 * z - 1)  # (8, 4)
    log_x = (logits @ BITS.T) - torch.nn.functional.softplus(logits).sum(-1, keepdim=True)
    local = guide.encoder(BITS)  # (N, 3)
    signs = torch.where(z[:, None] == 1, -local, local)  # (8, N, 3)
    return log_prior[:, None] + log_x, -torch.nn.functional.softplus(signs).sum(-1)


def test_bernoulli_vae_importance_weights_average_to_the_enumerated_evidence() -> None:
    model, guide = _pair()
    log_p, _ = _tables(model, guide)
    w = log_weights(model, guide, BITS, num_particles=50_000).exp()
    error = w.std(0) / math.sqrt(len(w))
    assert ((w.mean(0) - log_p.logsumexp(0).exp().detach()).abs() < 5 * error).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LeaveOneOut", "DisARM", "REBAR", "RELAX"])
def test_bernoulli_vae_gradient_estimates_equal_the_enumerated_gradient(name: str) -> None:
    model, guide = _pair()
    log_p, log_q = _tables(model, guide)
    elbo = (log_q.exp() * (log_p - log_q)).sum()
    bias = guide.encoder.net.layers[-1].bias  # type: ignore[union-attr, index]
    (exact,) = torch.autograd.grad(elbo, bias)
    objective: Any = getattr(estimators, name)(num_particles=20)
    result = []
    for _ in range(60):
        guide.zero_grad()
        objective.loss_and_grads(model, guide, BITS)
        result.append(-bias.grad.clone())
    each = torch.stack(result)
    error = each.std(0) / math.sqrt(len(each))
    assert ((each.mean(0) - exact).abs() < 5 * error).all()
    assert ((each.mean(0) - 1.5 * exact).abs() > 5 * error).any()  # and no other is


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VIMCO", "RELAX"])
def test_bernoulli_vae_passes_check_and_its_run_loads(name: str, tmp_path: Path) -> None:
    data = load_data("digits(binarize=8)").subset(torch.arange(20))
    x = data.tensors[0]
    if name == "VIMCO":
        assert not list(check(*_pair(), BITS))
    run = fit(
        "models/bernoulli_vae.py:BernoulliVAE",
        "ppl_lvm.guides:AmortizedCategorical",
        data,
        settings={"latent": 4, "hidden": (8,)},
        objective=f"{name}(num_particles=2)",
        num_steps=3,
        directory=tmp_path / "run" if name == "VIMCO" else None,
    )
    assert run.encode(x)["z"].shape == (20, 4)
    if name == "VIMCO":
        again = load_run(tmp_path / "run")
        torch.testing.assert_close(again.encode(x)["z"], run.encode(x)["z"])
        assert (tmp_path / "run" / "pictures" / "samples.png").exists()
        assert run.to_arviz(x[:4], num_samples=2).posterior["z"].shape == (1, 2, 4, 4)


def test_bernoulli_vae_training_raises_the_bound_towards_the_evidence() -> None:
    model, guide = _pair()
    run = fit(model, guide, BITS, objective="LeaveOneOut(num_particles=8)", num_steps=200)
    log_p, log_q = _tables(run.model, run.guide)  # type: ignore[arg-type]
    before_p, before_q = _tables(model, guide)
    bound = (log_q.exp() * (log_p - log_q)).sum(0).mean()
    assert bound > (before_q.exp() * (before_p - before_q)).sum(0).mean() + 0.5
    assert bound <= log_p.logsumexp(0).mean() + 1e-5
