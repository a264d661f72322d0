"""Optimisers as formulas on one flat vector.

Each rule takes the parameters p, the gradient g and the optimiser's moments, all flat vectors of n
numbers, and changes p and the moments in place. The numbers that change from step to step come in
`h`, computed in double precision on the host, so that a compiled step takes them as an input and a
learning-rate schedule costs nothing. (1 - β₂ is one of them: in float32, from 0.999, it would be
off by 1e-5, and steps with it.) Same updates as torch's and Pyro's single-tensor ones.

References:
    Kingma, Ba (2015). Adam: a method for stochastic optimization. https://arxiv.org/abs/1412.6980
    Loshchilov, Hutter (2019). Decoupled weight decay regularization.
    https://arxiv.org/abs/1711.05101
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

Numbers = Sequence[Any]  # floats, or 0-dimensional tensors in a compiled step


@dataclass(frozen=True)
class Rule:
    """One optimiser: the names of its moments, its numbers at step t = 1, 2, …, its update."""

    moments: tuple[str, ...]
    step_scalars: Callable[[dict[str, Any], int], list[float]]
    update: Callable[[Tensor, Tensor, list[Tensor], Numbers, dict[str, Any]], None]
    counts: type | None  # how the optimiser stores t: a tensor, an int, not at all


def _adam_numbers(o: dict[str, Any], t: int) -> list[float]:
    b1, b2 = o["betas"]
    lr = float(o["lr"])
    root = math.sqrt(1 - b2**t)
    rate = lr / (1 - b1**t)
    return [o["weight_decay"], 1 - lr * o["weight_decay"], 1 - b1, b2, root, rate, 1 - b2]


def _adam(p: Tensor, g: Tensor, moments: list[Tensor], h: Numbers, o: dict[str, Any]) -> None:
    m, v = moments
    if o["weight_decay"] and o.get("decoupled_weight_decay"):
        p.mul_(h[1])
    elif o["weight_decay"]:
        g = g + p * h[0]
    m.add_((g - m) * h[2])
    v.mul_(h[3]).add_(g * g * h[6])
    p.sub_(m / (v.sqrt() / h[4] + o["eps"]) * h[5])


def _clipped_adam_numbers(o: dict[str, Any], t: int) -> list[float]:
    o["lr"] *= o["lrd"]
    b1, b2 = o["betas"]
    rate = o["lr"] * math.sqrt(1 - b2**t) / (1 - b1**t)
    return [o["weight_decay"], b1, b2, rate, 1 - b1, 1 - b2]


def _clipped_adam(
    p: Tensor, g: Tensor, moments: list[Tensor], h: Numbers, o: dict[str, Any]
) -> None:
    m, v = moments
    g = g.clamp(-o["clip_norm"], o["clip_norm"])
    if o["weight_decay"]:
        g = g + p * h[0]
    m.mul_(h[1]).add_(g * h[4])
    spread = g - m if o["centered_variance"] else g
    v.mul_(h[2]).add_(spread * spread * h[5])
    p.sub_(m / (v.sqrt() + o["eps"]) * h[3])


def _sgd_numbers(o: dict[str, Any], t: int) -> list[float]:
    taken = 1.0 if t == 1 else 1 - o["dampening"]  # the first step starts the buffer undamped
    return [o["weight_decay"], o["momentum"], taken, float(o["lr"])]


def _sgd(p: Tensor, g: Tensor, moments: list[Tensor], h: Numbers, o: dict[str, Any]) -> None:
    if o["weight_decay"]:
        g = g + p * h[0]
    if o["momentum"]:
        (m,) = moments
        m.mul_(h[1]).add_(g * h[2])
        g = g + m * h[1] if o["nesterov"] else m
    p.sub_(g * h[3])


_ADAM = Rule(("exp_avg", "exp_avg_sq"), _adam_numbers, _adam, Tensor)
_CLIPPED = Rule(("exp_avg", "exp_avg_sq"), _clipped_adam_numbers, _clipped_adam, int)
_MOMENTUM = Rule(("momentum_buffer",), _sgd_numbers, _sgd, None)
_PLAIN = Rule((), _sgd_numbers, _sgd, None)


def rule_of(optimizer: torch.optim.Optimizer, options: dict[str, Any]) -> Rule | None:
    """The rule that is this optimiser with these options, None if there is none."""
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return None
    unusual = ("amsgrad", "maximize", "capturable", "differentiable", "fused")
    if any(options.get(name) for name in unusual) or isinstance(options.get("lr"), Tensor):
        return None
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        return _ADAM
    if type(optimizer) is ClippedAdam:
        return _CLIPPED
    if type(optimizer) is torch.optim.SGD:
        return _MOMENTUM if options["momentum"] else _PLAIN
    return None
