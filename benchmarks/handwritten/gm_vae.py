"""A variational autoencoder with a Gaussian mixture prior.

log p(x, z) - log q(z | x),  log p(z) = log Σ_c π_c N(z; μ_c, diag σ_c²),  z ~ q(z | x)
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ppl_lvm.benchmarks.handwritten import vae

Parameters = dict[str, Tensor]


def parameters(components: int = 10, observed: int = 64, latent: int = 8) -> Parameters:
    """Those of `vae.py`; equal weights, random means, standard deviations of one."""
    mixture = {
        "prior.logits": torch.zeros(components),
        "prior.means": torch.randn(components, latent),
        "prior.log_scales": torch.zeros(components, latent),
    }
    network = vae.parameters(observed, latent=latent)
    return network | {name: value.requires_grad_() for name, value in mixture.items()}


def elbo(params: Parameters, x: Tensor) -> Tensor:
    """The bound of each row from one particle, (B,), the component summed out."""
    mean, log_scale = vae.encode(params, x)
    noise = torch.randn_like(mean)
    z = mean + log_scale.exp() * noise
    log_scales = params["prior.log_scales"]
    unit = (z.unsqueeze(-2) - params["prior.means"]) * (-log_scales).exp()  # (B, C, D)
    each = (-0.5 * unit**2 - log_scales).sum(-1) + params["prior.logits"].log_softmax(-1)
    log_prior = each.logsumexp(-1)
    log_q = (-0.5 * noise**2 - log_scale).sum(-1)  # the π's of prior and guide cancel
    logits = vae.decode(params, z)
    log_like = -binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    return log_like + log_prior - log_q
