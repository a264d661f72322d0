"""A mixture of linear decoders, selected by a category.

    c ~ Categorical(softmax(a))                latent    C categories
    z ~ Normal(0, I)                           latent    (D,)
    x ~ Normal(W_c z + b_c, s² I)              observed  (P,)
    q(c, z | x) = Categorical(c; softmax(V x + e)) Normal(z; U x + d_c, diag exp(l)²)

The category has no reparameterization and z has one: the mixed case. Parameters are plain
tensors, named "model.…" and "guide.…".

    log p(x) = log Σ_c softmax(a)_c Normal(x; b_c, W_c W_cᵀ + s² I)
"""

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.nn.functional import one_hot

from ppl_lvm.benchmarks.handwritten.linear_gaussian import log_normal

Parameters = dict[str, Tensor]
Draw = tuple[Tensor, Tensor]


def parameters(categories: int = 3, latent: int = 1, observed: int = 2) -> Parameters:
    """Random parameters, different for each decoder."""
    params = {
        "model.prior": torch.randn(categories) * 0.5,
        "model.weight": torch.randn(categories, observed, latent),
        "model.bias": torch.randn(categories, observed),
        "model.log_scale": torch.tensor(-0.3),
        "guide.category_weight": torch.randn(categories, observed) * 0.5,
        "guide.category_bias": torch.randn(categories) * 0.5,
        "guide.weight": torch.randn(latent, observed) * 0.3,
        "guide.bias": torch.randn(categories, latent) * 0.3,
        "guide.log_scale": torch.full((latent,), -0.5),
    }
    return {name: value.requires_grad_() for name, value in params.items()}


def guide_logits(params: Parameters, x: Tensor) -> Tensor:
    """Normalized log-probabilities of q(c | x), (B, C)."""
    logits = x @ params["guide.category_weight"].T + params["guide.category_bias"]
    return logits.log_softmax(-1)


def draw(params: Parameters, x: Tensor, num_particles: int) -> Draw:
    """Categories (K, B), without gradient, and z (K, B, D), with."""
    probs = guide_logits(params, x).exp().detach().repeat(num_particles, 1)  # (K B, C)
    c = torch.multinomial(probs, 1, replacement=True).view(num_particles, len(x))
    noise = torch.randn(num_particles, len(x), params["guide.bias"].shape[1], dtype=x.dtype)
    return c, place(params, x, c, noise)


def place(params: Parameters, x: Tensor, c: Tensor, noise: Tensor) -> Tensor:
    """z from categories (..., B) and noise ε (..., B, D), with gradient."""
    mean = x @ params["guide.weight"].T + params["guide.bias"][c]
    return mean + params["guide.log_scale"].exp() * noise


def log_p(params: Parameters, x: Tensor, draw: Draw) -> Tensor:
    """log p(x, c, z), (..., B), for x (B, P)."""
    c, z = draw
    standard = torch.zeros((), dtype=z.dtype)
    mean = (params["model.weight"][c] @ z.unsqueeze(-1)).squeeze(-1) + params["model.bias"][c]
    log_prior = params["model.prior"].log_softmax(-1)[c] + log_normal(z, standard, standard)
    return log_prior + log_normal(x, mean, params["model.log_scale"])


def log_q_parts(params: Parameters, x: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """log q(c | x) and log q(z | x, c), (..., B) each."""
    c, z = draw
    logits = guide_logits(params, x)
    log_category = (one_hot(c, logits.shape[-1]) * logits).sum(-1)
    mean = x @ params["guide.weight"].T + params["guide.bias"][c]
    return log_category, log_normal(z, mean, params["guide.log_scale"])


def log_evidence(params: Parameters, x: Tensor) -> Tensor:
    """log p(x), (B,), both latents integrated out."""
    weight = params["model.weight"]  # (C, P, D)
    noise = (2 * params["model.log_scale"]).exp() * torch.eye(weight.shape[1], dtype=x.dtype)
    components = MultivariateNormal(params["model.bias"], weight @ weight.mT + noise)
    log_prior = params["model.prior"].log_softmax(-1)
    return (log_prior + components.log_prob(x.unsqueeze(-2))).logsumexp(-1)
