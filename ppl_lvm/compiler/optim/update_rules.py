"""Update rules of optimizers on one flat vector.

A rule takes the parameters p, the gradient g and the optimizer's moments, all flat vectors of n
numbers, and changes p and the moments in place. The scalars h change from step to step. They are
computed in double precision on the host and passed as an input, so that a compiled step serves
every learning rate of a schedule. (1 - β₂ is one of them: in float32, from 0.999, it would be off
by 1e-5, and so would the steps.) The updates are torch's and Pyro's single-tensor ones. `RULES`
lists the optimizers.

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
from torch.optim import SGD, Adam, AdamW, Optimizer

Scalars = Sequence[Any]  # floats, or 0-dimensional tensors in a compiled step

_UNSUPPORTED_OPTIONS = ("amsgrad", "maximize", "capturable", "differentiable", "fused")


@dataclass(frozen=True)
class Rule:
    """One optimizer as a formula.

    Attributes:
        optimizers: the classes that it serves.
        moments: their names in the optimizer's state.
        step_scalars: (options, t) -> h at step t = 1, 2, …
        update: (p, g, moments, h, options) -> None.
        step_count_type: type of the optimizer's step count: a tensor, an int, None if it has none.
        applies: (options) -> whether the rule holds with these options.
    """

    optimizers: tuple[type[Optimizer], ...]
    moments: tuple[str, ...]
    step_scalars: Callable[[dict[str, Any], int], list[float]]
    update: Callable[[Tensor, Tensor, list[Tensor], Scalars, dict[str, Any]], None]
    step_count_type: type | None
    applies: Callable[[dict[str, Any]], bool] = lambda options: True


def _adam_scalars(o: dict[str, Any], t: int) -> list[float]:
    b1, b2 = o["betas"]
    lr = float(o["lr"])
    root = math.sqrt(1 - b2**t)
    rate = lr / (1 - b1**t)
    return [o["weight_decay"], 1 - lr * o["weight_decay"], 1 - b1, b2, root, rate, 1 - b2]


def _adam(p: Tensor, g: Tensor, moments: list[Tensor], h: Scalars, o: dict[str, Any]) -> None:
    m, v = moments
    if o["weight_decay"] and o.get("decoupled_weight_decay"):
        p.mul_(h[1])
    elif o["weight_decay"]:
        g = g + p * h[0]
    m.add_((g - m) * h[2])
    v.mul_(h[3]).add_(g * g * h[6])
    p.sub_(m / (v.sqrt() / h[4] + o["eps"]) * h[5])


def _clipped_adam_scalars(o: dict[str, Any], t: int) -> list[float]:
    o["lr"] *= o["lrd"]
    b1, b2 = o["betas"]
    rate = o["lr"] * math.sqrt(1 - b2**t) / (1 - b1**t)
    return [o["weight_decay"], b1, b2, rate, 1 - b1, 1 - b2]


def _clipped_adam(
    p: Tensor, g: Tensor, moments: list[Tensor], h: Scalars, o: dict[str, Any]
) -> None:
    m, v = moments
    g = g.clamp(-o["clip_norm"], o["clip_norm"])
    if o["weight_decay"]:
        g = g + p * h[0]
    m.mul_(h[1]).add_(g * h[4])
    spread = g - m if o["centered_variance"] else g
    v.mul_(h[2]).add_(spread * spread * h[5])
    p.sub_(m / (v.sqrt() + o["eps"]) * h[3])


def _sgd_scalars(o: dict[str, Any], t: int) -> list[float]:
    undamped = 1.0 if t == 1 else 1 - o["dampening"]  # the first step starts the buffer undamped
    return [o["weight_decay"], o["momentum"], undamped, float(o["lr"])]


def _sgd(p: Tensor, g: Tensor, moments: list[Tensor], h: Scalars, o: dict[str, Any]) -> None:
    if o["weight_decay"]:
        g = g + p * h[0]
    if o["momentum"]:
        (m,) = moments
        m.mul_(h[1]).add_(g * h[2])
        g = g + m * h[1] if o["nesterov"] else m
    p.sub_(g * h[3])


RULES = (
    Rule((Adam, AdamW), ("exp_avg", "exp_avg_sq"), _adam_scalars, _adam, Tensor),
    Rule((ClippedAdam,), ("exp_avg", "exp_avg_sq"), _clipped_adam_scalars, _clipped_adam, int),
    Rule((SGD,), ("momentum_buffer",), _sgd_scalars, _sgd, None, lambda o: bool(o["momentum"])),
    Rule((SGD,), (), _sgd_scalars, _sgd, None, lambda o: not o["momentum"]),
)


def rule_of(optimizer: torch.optim.Optimizer, options: dict[str, Any]) -> Rule | None:
    """The rule of this optimizer with these options, None if `RULES` has none."""
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return None
    if any(options.get(name) for name in _UNSUPPORTED_OPTIONS):
        return None
    if isinstance(options.get("lr"), Tensor):
        return None
    rules = (rule for rule in RULES if type(optimizer) in rule.optimizers)
    return next((rule for rule in rules if rule.applies(options)), None)


def supported_optimizers() -> str:
    """The names of the optimizers in `RULES`, for messages."""
    return ", ".join(dict.fromkeys(cls.__name__ for rule in RULES for cls in rule.optimizers))
