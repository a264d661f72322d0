"""Bernoulli logit gradient with a relaxed control variate.

Shared by REBAR and RELAX. For f = log p(x, b) - log q(b | x), bits b with logits φ, relaxed z and
z' (`relaxed_bernoulli.py`), and a control variate c,

    g = (f(b) - c(z')) ∂log q(b)/∂φ + c'(z) ∂z/∂φ - c'(z') ∂z'/∂φ,

whose mean is ∇φ E[f(b)] for every c. The parameters of c descend Σ g², whose mean is the variance
of g plus a constant.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppl_lvm.core.distributions import innermost
from ppl_lvm.estimators.parts.relaxed_bernoulli import RelaxedBernoulli
from ppl_lvm.particles import Particles

Control = Callable[[Tensor], Tensor]  # z (K, ...) -> c (K, B)


class _Unchecked(Messenger):
    """Allow values between 0 and 1, outside the support, at one site."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.name:
            innermost(msg["fn"])._validate_args = False


def relaxed_log_weight(particles: Particles, name: str, z: Tensor, tau: Tensor) -> Tensor:
    """f at the relaxed bits σ(z / τ): (K, B). Log-densities are linear in the bits."""
    assert particles.rescore is not None
    with _Unchecked(name):
        return particles.rescore({name: (z / tau).sigmoid()}).log_w


def logit_gradient(relaxed: RelaxedBernoulli, f: Tensor, control: Control) -> tuple[Tensor, Tensor]:
    """(g, φ), (K, ...) each; g is differentiable in the control variate's parameters only.

    f: (K, B) log-weights at b.
    """
    draws = relaxed.draws()
    z, z2 = (draws[key].requires_grad_() for key in ("z", "z2"))
    c, c2 = control(z), control(z2)
    (dc,) = torch.autograd.grad(c.sum(), z, create_graph=True)
    (dc2,) = torch.autograd.grad(c2.sum(), z2, create_graph=True)
    phi = draws["phi"]
    score = draws["b"] - phi.detach().sigmoid()
    g = relaxed.per_bit(f.detach() - c2, phi) * score + dc - dc2 * draws["dz2"]
    return g, phi


def surrogate(
    particles: Particles,
    relaxed: RelaxedBernoulli,
    g: Tensor,
    phi: Tensor,
    learned: Sequence[nn.Parameter],
) -> Tensor:
    """S, (B,): gradient g for φ, ∇log p for the model, -∇Σ g² for the control variate."""
    K, B = particles.log_p.shape
    guide = relaxed.per_row(g.detach() * phi).sum(-1)  # (K, B)
    S = (particles.log_p + guide).mean(0)  # (B,)
    if not learned:
        return S
    grads = torch.autograd.grad((g**2).sum() / K, learned, allow_unused=True)
    for parameter, grad in zip(learned, grads, strict=True):
        if grad is not None:
            S = S - (grad.detach() * parameter).sum() / B
    return S
