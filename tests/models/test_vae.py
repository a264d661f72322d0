"""VAE against a hand-written bound, and on digits."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from sklearn.datasets import load_digits, load_wine
from torch import Tensor
from torch.nn import functional as F

from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedNormal
from ppl_lvm.models import (
    VAE,
    BernoulliVAE,
    ConditionalVAE,
    GaussianMixtureVAE,
    HierarchicalVAE,
    SemiSupervisedVAE,
)


def _log_normal(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    z = (x - mean) / scale
    return -0.5 * z**2 - scale.log() - 0.5 * torch.log(torch.tensor(2 * torch.pi))


def _data(likelihood: str) -> Tensor:
    if likelihood == "bernoulli":
        return torch.bernoulli(torch.full((6, 5), 0.5))
    if likelihood == "categorical":
        return torch.randint(3, (6, 5)).float()
    return 10 + 3 * torch.randn(6, 5)


def _log_likelihood(model: VAE, x: Tensor, z: Tensor) -> Tensor:
    out = model.decoder.net(z)
    if model.likelihood == "bernoulli":
        return -F.binary_cross_entropy_with_logits(out, x, reduction="none").sum(-1)
    if model.likelihood == "categorical":
        logits = out.reshape(len(x), -1, 3).mT
        return -F.cross_entropy(logits, x.long(), reduction="none").sum(-1)
    shared = model.likelihood == "gaussian-shared"
    unit = ((x - x.mean(0)) ** 2).mean(None if shared else 0).sqrt()
    scale = unit * torch.sqrt(model.decoder.scale**2 + model.floor)
    return _log_normal(x, x.mean(0) + unit * out, scale).sum(-1)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "gaussian-shared", "categorical"])
def test_vae_bound_equals_the_hand_written_one(likelihood: str) -> None:
    x = _data(likelihood)
    model = VAE(2, likelihood=likelihood, categories=3 if likelihood == "categorical" else None)
    model.initialize(x)
    guide = AmortizedNormal(model, x)
    pyro.set_rng_seed(3)
    loss = Trace_ELBO().loss(model, guide, x)
    pyro.set_rng_seed(3)
    mean, log_scale = guide.encoder(x).chunk(2, dim=-1)
    z = mean + log_scale.exp() * torch.empty(6, 2).normal_()
    log_q = _log_normal(z, mean, log_scale.exp()).sum(-1)
    log_prior = _log_normal(z, torch.tensor(0.0), torch.tensor(1.0)).sum(-1)
    bound = (_log_likelihood(model, x, z) + log_prior - log_q).sum()
    assert loss == pytest.approx(-bound.item(), rel=1e-5)


def test_vae_decode_returns_the_mean_of_x() -> None:
    z = torch.randn(4, 2)
    bits = VAE(2, observed=5)
    torch.testing.assert_close(bits.decode(z), torch.sigmoid(bits.decoder.net(z)))
    levels = VAE(2, observed=5, likelihood="categorical", categories=3)
    assert levels.decode(z).shape == (4, 5, 3)
    torch.testing.assert_close(levels.decode(z).sum(-1), torch.ones(4, 5))


def test_vae_with_one_variance_warns_of_columns_in_other_units() -> None:
    x = torch.tensor(load_wine().data).float()  # column 12, proline, has 315; the median is 0.81
    with pytest.warns(UserWarning, match=r"Column 12 has .* 314, 388 times .* standardize"):
        VAE(2, likelihood="gaussian-shared").initialize(x)
    VAE(2, likelihood="gaussian").initialize(x)  # a warning is an error
    VAE(2, likelihood="gaussian-shared").initialize((x - x.mean(0)) / x.std(0))


def test_vae_warns_of_constant_columns_and_floors_their_variance() -> None:
    x = torch.tensor(load_digits().data[:200]).float()
    constant = torch.where(x.var(0) == 0)[0].tolist()
    model = VAE(2, likelihood="gaussian", hidden=(16,))
    with pytest.warns(UserWarning, match="are constant") as warned:
        model.initialize(x)
    assert f"Columns {', '.join(map(str, constant[:8]))}" in str(warned[0].message)
    with torch.no_grad():  # as far down as any training could bring it
        model.decoder.scale = torch.full_like(model.decoder.scale, 1e-20)
    density = model.decoder(torch.zeros(1, 2)).base_dist
    variance = x.var(0, correction=0)
    variance[constant] = variance.mean()  # of the others, in place of 0
    torch.testing.assert_close(density.scale[0], (model.floor * variance).sqrt())
    assert torch.isfinite(model.decoder(torch.randn(200, 2)).log_prob(x)).all()


def test_vae_with_a_shared_variance_does_not_warn() -> None:
    x = torch.tensor(load_digits().data[:50]).float()
    VAE(2, likelihood="gaussian-shared").initialize(x)  # a warning would be an error here


def test_vae_training_raises_the_bound() -> None:
    x = (torch.tensor(load_digits().data[:256]) >= 8).float()
    model = VAE(4, hidden=(32,))
    model.initialize(x)
    guide = AmortizedNormal(model, x, hidden=(32,))
    svi = SVI(model, guide, Adam({"lr": 5e-3}), Trace_ELBO())
    losses = [svi.step(x) / 256 for _ in range(150)]
    independent = -(x * x.mean(0).log().clamp(-20) + (1 - x) * (1 - x.mean(0)).log().clamp(-20))
    assert losses[-1] < losses[0] - 15
    assert losses[-1] < independent.sum(-1).mean()  # better than pixels on their own


@pytest.mark.parametrize(
    ("likelihood", "value", "message"),
    [
        ("bernoulli", 0.5, "row 2, column 1 of x is 0.5 .*Binarize"),
        ("categorical", 3.0, "integers 0 to 2, but row 2, column 1 of x is 3 .*set categories"),
        ("gaussian", torch.nan, "finite numbers, but row 2, column 1 of x is nan"),
    ],
)
def test_vae_rejects_values_outside_the_support(
    likelihood: str, value: float, message: str
) -> None:
    x = _data(likelihood)
    x[2, 1] = value
    model = VAE(2, likelihood=likelihood, categories=3 if likelihood == "categorical" else None)
    with pytest.raises(ValueError, match=message):
        model.initialize(x)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_kl_weight_tempers_the_learned_posterior(beta: float) -> None:
    """β-VAE: q maximizes E log p(x | z) - β KL(q ‖ p), so q ∝ p(z) p(x | z)^(1/β)."""

    def model(x: Tensor) -> None:  # z ~ N(0, 1), x ~ N(2 z, 1)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(2 * z, 1.0).to_event(1), obs=x)

    x = torch.linspace(-3, 3, 40)[:, None]
    guide = AmortizedNormal(model, x, hidden=())
    run = fit(
        model,
        guide,
        x,
        objective="TraceMeanField_ELBO",
        optimizer="Adam(lr=0.02)",
        schedule="CosineAnnealingLR(T_max=600)",
        num_steps=600,
        kl_weight=beta,
    )
    loc, log_scale = run.guide.encoder(x).chunk(2, -1)  # type: ignore[attr-defined]
    precision = 1 + 4 / beta
    torch.testing.assert_close(loc, 2 / beta * x / precision, atol=0.05, rtol=0)
    torch.testing.assert_close(
        log_scale, torch.full_like(x, -0.5 * math.log(precision)), atol=0.05, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_vae_rejects_integer_bits_and_takes_integer_categories(dtype: torch.dtype) -> None:
    x = torch.bernoulli(torch.full((9, 5), 0.5)).to(dtype)
    with pytest.raises(
        ValueError, match=r"VAE with likelihood='bernoulli' takes rows of floating-point"
    ):
        VAE(2).initialize(x)
    levels = x.long()  # of which there is a likelihood of whole numbers
    VAE(2, likelihood="categorical", categories=2).initialize(levels)
    GaussianMixtureVAE(2, 2, likelihood="categorical", categories=2).initialize(levels)


@pytest.mark.parametrize(
    ("model", "site"),
    [
        (VAE(2), "z"),
        (HierarchicalVAE((2, 1)), "z1"),
        (GaussianMixtureVAE(2, 2), "z"),
        (SemiSupervisedVAE(2, 2), "z"),
        (BernoulliVAE(2), "z"),
        (ConditionalVAE(2), "z"),
    ],
)
def test_autoencoder_decode_equals_the_mean_of_its_likelihood(model: Any, site: str) -> None:
    x = torch.bernoulli(torch.full((9, 5), 0.5))
    batch, observed = ((x,), "x")
    if isinstance(model, ConditionalVAE):
        batch, observed = (3 + 2 * torch.randn(9, 4), x), "y"
    model.initialize(*batch)
    nodes = poutine.trace(model).get_trace(*batch).nodes
    conditioned = batch[:1] if observed == "y" else ()
    decoded = model.decode(nodes[site]["value"], *conditioned)
    torch.testing.assert_close(decoded, nodes[observed]["fn"].mean)
