"""The hand-written VAE: bounds by quadrature, digits."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ppl_lvm.benchmarks.handwritten import vae


def exact_bounds(params: vae.Parameters, x: Tensor) -> tuple[Tensor, Tensor]:
    """ELBO and log p(x), (B,) each, of a one-dimensional latent on a fine grid."""
    z = torch.linspace(-12, 12, 20001, dtype=x.dtype).unsqueeze(-1)  # (G, 1)
    width = (z[1] - z[0]).item()
    logits = vae.decode(params, z).unsqueeze(1)  # (G, 1, P)
    log_likelihood = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(-1)  # (G, B)
    log_p = log_likelihood + torch.distributions.Normal(0.0, 1.0).log_prob(z)
    mean, log_scale = vae.encode(params, x)
    log_q = torch.distributions.Normal(mean.T, log_scale.exp().T).log_prob(z)
    elbo = (log_q.exp() * (log_p - log_q)).sum(0) * width
    return elbo, (log_p.logsumexp(0).exp() * width).log()


@pytest.fixture
def small() -> tuple[vae.Parameters, Tensor]:
    torch.set_default_dtype(torch.float64)
    params = vae.parameters(observed=3, hidden=6, latent=1)
    return params, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


def within(draws: Tensor, exact: Tensor, errors: float = 5) -> bool:
    """True if the mean over dimension 0 is within this number of standard errors."""
    standard_error = draws.std(0) / len(draws) ** 0.5
    return bool(((draws.mean(0) - exact).abs() <= errors * standard_error + 1e-12).all())


def test_handwritten_vae_bounds_are_elbo_and_evidence(small: tuple[vae.Parameters, Tensor]) -> None:
    params, x = small
    elbo, log_p = exact_bounds(params, x)
    many = x.repeat(100_000, 1)
    draws = vae.elbo(params, many).detach().view(-1, 2)
    assert within(draws, elbo)
    assert not within(draws, log_p)  # the KL between the two must be significant
    assert within(vae.log_weights(params, x, 100_000).detach().exp(), log_p.exp())
    assert within(vae.iwae(params, many, 1).detach().view(-1, 2), elbo)


def test_handwritten_vae_elbo_gradient_is_exact(small: tuple[vae.Parameters, Tensor]) -> None:
    params, x = small
    elbo, _ = exact_bounds(params, x)
    exact = torch.autograd.grad(elbo.sum(), list(params.values()))
    repeats = 200
    draws = [
        torch.autograd.grad(vae.elbo(params, x.repeat(1000, 1)).sum() / 1000, list(params.values()))
        for _ in range(repeats)
    ]
    for i, name in enumerate(params):
        assert within(torch.stack([draw[i] for draw in draws]), exact[i]), name


def test_handwritten_vae_log_evidence_is_independent_of_chunk(
    small: tuple[vae.Parameters, Tensor],
) -> None:
    params, x = small
    _, log_p = exact_bounds(params, x)
    for chunk in (7, 5000):
        estimate = vae.log_evidence(params, x, 20_000, chunk=chunk)
        torch.testing.assert_close(estimate, log_p, atol=0.01, rtol=0)


@pytest.mark.slow
def test_handwritten_vae_reaches_reference_on_digits() -> None:
    """Reference held-out log p(x): -18.0 with the ELBO, -17.7 with IWAE-5, nats per digit."""
    x = torch.tensor((load_digits().data >= 8).astype("float32"))
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, held_out = x[rows[:1500]], x[rows[1500:]]
    reached = {}
    for num_particles in (1, 5):
        params = vae.train(train, num_particles=num_particles)
        reached[num_particles] = vae.log_evidence(params, held_out).mean().item()
    assert reached[1] == pytest.approx(-18.0, abs=0.15)
    assert reached[5] == pytest.approx(-17.7, abs=0.15)
    assert reached[5] > reached[1] + 0.1
