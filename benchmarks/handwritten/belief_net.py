"""A sigmoid belief net and its guide.

    z ~ Bernoulli(σ(a))            latent    (D,)
    x ~ Bernoulli(σ(W z + b))      observed  (P,)
    q(z | x) = Bernoulli(σ(V x + c))

Parameters are plain tensors, named "model.…" and "guide.…".
"""

from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Parameters = dict[str, Tensor]


def parameters(latent: int = 2, observed: int = 4) -> Parameters:
    """Normal with sd 0.7, so that no bit is nearly certain."""
    shapes = {
        "model.prior": (latent,),
        "model.weight": (observed, latent),
        "model.bias": (observed,),
        "guide.weight": (latent, observed),
        "guide.bias": (latent,),
    }
    return {name: torch.randn(shape).mul_(0.7).requires_grad_() for name, shape in shapes.items()}


def log_bernoulli(logits: Tensor, bits: Tensor) -> Tensor:
    """log of a product of Bernoullis, summed over the last dimension; defined on [0, 1] too."""
    return (bits * logsigmoid(logits) + (1 - bits) * logsigmoid(-logits)).sum(-1)


def guide_logits(params: Parameters, x: Tensor) -> Tensor:
    """Logits of q(z | x), (B, D), for x (B, P)."""
    return x @ params["guide.weight"].T + params["guide.bias"]


def draw(params: Parameters, x: Tensor, num_particles: int) -> Tensor:
    """z ~ q(z | x), (K, B, D), without gradient."""
    probs = guide_logits(params, x).sigmoid().detach()
    return torch.bernoulli(probs.expand(num_particles, *probs.shape))


def log_likelihood(params: Parameters, x: Tensor, z: Tensor) -> Tensor:
    """log p(x | z), (..., B), for z (..., B, D) in [0, 1]."""
    return log_bernoulli(z @ params["model.weight"].T + params["model.bias"], x)


def log_p(params: Parameters, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z), (..., B), for z (..., B, D)."""
    return log_bernoulli(params["model.prior"], z) + log_likelihood(params, x, z)


def log_q(params: Parameters, x: Tensor, z: Tensor) -> Tensor:
    """log q(z | x), (..., B), for z (..., B, D)."""
    return log_bernoulli(guide_logits(params, x), z)


def states(latent: int, dtype: torch.dtype | None = None) -> Tensor:
    """All 2ᴰ values of z, (2ᴰ, 1, D)."""
    return torch.tensor(list(product((0.0, 1.0), repeat=latent)), dtype=dtype).unsqueeze(1)


def log_evidence(params: Parameters, x: Tensor) -> Tensor:
    """log p(x) by the sum over all states, (B,)."""
    z = states(len(params["model.prior"]), x.dtype).expand(-1, len(x), -1)
    return log_p(params, x, z).logsumexp(0)
