"""Low-variance gradients of E_q f(b) for independent Bernoulli bits with logits φ.

Every function takes the logits φ (..., D), uniform noise of the same shape and f: bits (..., D) →
(...); it returns what to maximize, (...). In f the guide's parameters are held still (their own
gradient of -log q has mean zero); its model parameters get their gradient through f.

    disarm  ½ (f(b) - f(b̃)) (-1)^b̃ᵢ 1[bᵢ ≠ b̃ᵢ] σ(|φᵢ|), b = 1[1-u < σ(φ)], b̃ = 1[u < σ(φ)]
    arm     (f(1[u > σ(-φ)]) - f(1[u < σ(φ)])) (u - ½)
    relax   (f(b) - η c(z̃)) ∇log q(b) + η ∇c(z) - η ∇c(z̃), z = φ + logit u, b = 1[z > 0],
            z̃ the same given b, from independent noise v; any c
    rebar   relax with c(z) = f(σ(z / τ)); f must be defined on [0, 1]

References:
    Yin, Zhou (2019). ARM. https://arxiv.org/abs/1807.11143
    Dong, Mnih, Tucker (2020). DisARM. https://arxiv.org/abs/2006.10680
    Tucker et al. (2017). REBAR. https://arxiv.org/abs/1703.07370
    Grathwohl et al. (2018). Backpropagation through the void. https://arxiv.org/abs/1711.00123
"""

from collections.abc import Callable

from torch import Tensor

from ppl_lvm.benchmarks.handwritten.belief_net import log_bernoulli

Function = Callable[[Tensor], Tensor]


def disarm(logits: Tensor, u: Tensor, f: Function) -> Tensor:
    s = logits.sigmoid().detach()
    b, b_tilde = (1 - u < s).to(s), (u < s).to(s)
    f_b, f_tilde = f(b), f(b_tilde)
    differ = (b != b_tilde).to(s) * (1 - 2 * b_tilde) * logits.detach().abs().sigmoid()
    gradient = 0.5 * (f_b - f_tilde).detach().unsqueeze(-1) * differ
    return (gradient * logits).sum(-1) + 0.5 * (f_b + f_tilde)


def arm(logits: Tensor, u: Tensor, f: Function) -> Tensor:
    s = logits.sigmoid().detach()
    f_b, f_tilde = f((1 - u < s).to(s)), f((u < s).to(s))
    gradient = (f_b - f_tilde).detach().unsqueeze(-1) * (u - 0.5)
    return (gradient * logits).sum(-1) + 0.5 * (f_b + f_tilde)


def logit(u: Tensor) -> Tensor:
    return u.log() - (-u).log1p()


def couple(logits: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """b, the logistic draw z behind it, and z̃ ~ p(z | b), differentiable in the logits."""
    z = logits + logit(u)
    b = (z > 0).to(logits).detach()
    s = logits.sigmoid()
    u_tilde = b * (v * s + 1 - s) + (1 - b) * v * (1 - s)
    return b, z, logits + logit(u_tilde)


def relax(
    logits: Tensor, u: Tensor, v: Tensor, f: Function, c: Function, eta: float | Tensor = 1.0
) -> Tensor:
    b, z, z_tilde = couple(logits, u, v)
    f_b, c_z, c_tilde = f(b), eta * c(z), eta * c(z_tilde)
    return (f_b - c_tilde).detach() * log_bernoulli(logits, b) + f_b + c_z - c_tilde


def rebar(
    logits: Tensor,
    u: Tensor,
    v: Tensor,
    f: Function,
    still: Function,
    temperature: float = 0.5,
    eta: float | Tensor = 1.0,
) -> Tensor:
    """`still` is f with all parameters held still: what c gives them has mean zero anyway."""
    return relax(logits, u, v, f, lambda z: still((z / temperature).sigmoid()), eta)
