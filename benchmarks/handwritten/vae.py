"""A variational autoencoder on binary pixels, and its training loop.

    z_n ~ Normal(0, I)                              latent    (N, D)
    x_n ~ Bernoulli(σ(V₂ relu(V₁ z_n)))             observed  (N, P)
    q(z_n | x_n) = Normal(μ(x_n), diag σ(x_n)²)     from one hidden layer relu(W₁ x_n)

Trained on log_w = log p(x, z) - log q(z | x) of K particles by

    K = 1   ELBO = E_q log p(x | z) - KL(q(z | x) ‖ p(z)), the KL in closed form
    K > 1   IWAE_K = E log 1/K Σ_k w_k

References:
    Kingma, Welling (2014). Auto-encoding variational Bayes. https://arxiv.org/abs/1312.6114
    Burda, Grosse, Salakhutdinov (2016). Importance weighted autoencoders.
    https://arxiv.org/abs/1509.00519
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear

Parameters = dict[str, Tensor]


def parameters(observed: int = 64, hidden: int = 128, latent: int = 8) -> Parameters:
    """Weights and biases, uniform in ±1/√fan_in (as `nn.Linear`)."""
    layers = {
        "encoder.hidden": (observed, hidden),
        "encoder.mean": (hidden, latent),
        "encoder.log_scale": (hidden, latent),
        "decoder.hidden": (latent, hidden),
        "decoder.logits": (hidden, observed),
    }
    params = {}
    for name, (fan_in, fan_out) in layers.items():
        limit = 1 / math.sqrt(fan_in)
        params[f"{name}.weight"] = torch.empty(fan_out, fan_in).uniform_(-limit, limit)
        params[f"{name}.bias"] = torch.empty(fan_out).uniform_(-limit, limit)
    return {name: value.requires_grad_() for name, value in params.items()}


def _layer(params: Parameters, name: str, x: Tensor) -> Tensor:
    return linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def encode(params: Parameters, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation of q(z | x), each (B, D), for x (B, P)."""
    h = _layer(params, "encoder.hidden", x).relu()
    return _layer(params, "encoder.mean", h), _layer(params, "encoder.log_scale", h)


def decode(params: Parameters, z: Tensor) -> Tensor:
    """Logits of the pixels (..., P), for z (..., D)."""
    return _layer(params, "decoder.logits", _layer(params, "decoder.hidden", z).relu())


def _log_likelihood(params: Parameters, x: Tensor, z: Tensor) -> Tensor:
    logits = decode(params, z)
    return -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def elbo(params: Parameters, x: Tensor) -> Tensor:
    """The bound of each row from one particle, (B,), the KL in closed form."""
    mean, log_scale = encode(params, x)
    scale = log_scale.exp()
    z = mean + scale * torch.randn_like(mean)
    kl = (0.5 * (mean**2 + scale**2 - 1) - log_scale).sum(-1)
    return _log_likelihood(params, x, z) - kl


def log_weights(params: Parameters, x: Tensor, num_particles: int) -> Tensor:
    """log p(x, z_k) - log q(z_k | x), (K, B); the π's of prior and guide cancel."""
    mean, log_scale = encode(params, x)
    noise = torch.randn(num_particles, *mean.shape)
    z = mean + log_scale.exp() * noise
    log_prior_over_guide = (0.5 * (noise**2 - z**2) + log_scale).sum(-1)
    return _log_likelihood(params, x, z) + log_prior_over_guide


def iwae(params: Parameters, x: Tensor, num_particles: int) -> Tensor:
    """The K-sample bound of each row, (B,)."""
    return log_weights(params, x, num_particles).logsumexp(0) - math.log(num_particles)


def step(
    params: Parameters, optimizer: torch.optim.Optimizer, x: Tensor, num_particles: int
) -> float:
    """One ascent step; returns the bound summed over the batch, in nats."""
    optimizer.zero_grad()
    bound = (elbo(params, x) if num_particles == 1 else iwae(params, x, num_particles)).sum()
    (-bound).backward()
    optimizer.step()
    return bound.item()


def train(
    x: Tensor,
    *,
    num_particles: int = 1,
    latent: int = 8,
    hidden: int = 128,
    num_epochs: int = 150,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Parameters:
    """Fit x (N, P) of zeros and ones: Adam on shuffled batches, the short last one included."""
    torch.manual_seed(seed)
    params = parameters(x.shape[1], hidden, latent)
    optimizer = torch.optim.Adam(params.values(), lr=learning_rate)
    for _ in range(num_epochs):
        for rows in torch.randperm(len(x)).split(batch_size):
            step(params, optimizer, x[rows], num_particles)
    return params


@torch.no_grad()
def log_evidence(
    params: Parameters, x: Tensor, num_particles: int = 5000, *, chunk: int = 100
) -> Tensor:
    """Importance-weighted log p(x) of each row, (N,), `chunk` particles at a time."""
    total = torch.full((len(x),), -math.inf)
    for start in range(0, num_particles, chunk):
        log_w = log_weights(params, x, min(chunk, num_particles - start))
        total = torch.logaddexp(total, log_w.logsumexp(0))
    return total - math.log(num_particles)
