"""A linear-Gaussian autoencoder with closed-form evidence and posterior.

    z ~ Normal(0, I)                    latent    (D,)
    x ~ Normal(W z + b, s² I)           observed  (P,)
    q(z | x) = Normal(V x + c, diag exp(l)²)

    log p(x) = log Normal(x; b, W Wᵀ + s² I)

Parameters are plain tensors, named "model.…" and "guide.…".
"""

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

Parameters = dict[str, Tensor]


def parameters(latent: int = 1, observed: int = 2) -> Parameters:
    """Random weights; the guide is not the posterior."""
    params = {
        "model.weight": torch.randn(observed, latent),
        "model.bias": torch.randn(observed),
        "model.log_scale": torch.tensor(-0.3),
        "guide.weight": torch.randn(latent, observed) * 0.3,
        "guide.bias": torch.randn(latent) * 0.3,
        "guide.log_scale": torch.full((latent,), -0.5),
    }
    return {name: value.requires_grad_() for name, value in params.items()}


def log_normal(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log Normal(x; mean, exp(log_scale)²), summed over the last dimension."""
    white = (x - mean) * (-log_scale).exp()
    return (-0.5 * white**2 - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)


def draw(params: Parameters, x: Tensor, num_particles: int) -> Tensor:
    """z = V x + c + exp(l) ε, (K, B, D), with gradient."""
    shape = (num_particles, len(x), len(params["guide.bias"]))
    return place(params, x, torch.randn(shape, dtype=x.dtype))


def place(params: Parameters, x: Tensor, noise: Tensor) -> Tensor:
    """z from noise ε (..., B, D), with gradient."""
    mean = x @ params["guide.weight"].T + params["guide.bias"]
    return mean + params["guide.log_scale"].exp() * noise


def log_p(params: Parameters, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z), (..., B), for z (..., B, D)."""
    mean = z @ params["model.weight"].T + params["model.bias"]
    standard = torch.zeros((), dtype=z.dtype)
    return log_normal(z, standard, standard) + log_normal(x, mean, params["model.log_scale"])


def log_q(params: Parameters, x: Tensor, z: Tensor) -> Tensor:
    """log q(z | x), (..., B), for z (..., B, D)."""
    mean = x @ params["guide.weight"].T + params["guide.bias"]
    return log_normal(z, mean, params["guide.log_scale"])


def log_evidence(params: Parameters, x: Tensor) -> Tensor:
    """log p(x), (B,), for x (B, P)."""
    weight = params["model.weight"]
    noise = (2 * params["model.log_scale"]).exp() * torch.eye(len(weight), dtype=x.dtype)
    return MultivariateNormal(params["model.bias"], weight @ weight.T + noise).log_prob(x)


def posterior(params: Parameters, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, D) and covariance (D, D) of p(z | x)."""
    weight = params["model.weight"]
    precision = torch.eye(weight.shape[1], dtype=x.dtype)
    precision = precision + weight.T @ weight * (-2 * params["model.log_scale"]).exp()
    covariance = precision.inverse()
    white = (x - params["model.bias"]) * (-2 * params["model.log_scale"]).exp()
    return white @ weight @ covariance, covariance
