"""TODO."""

import inspect
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_lvm.core.call_syntax import build, parse_call, settings_of


def optimizer(spec: Any, parameters: list[Tensor]) -> Optimizer:
    """A torch optimiser: "Adam(lr=0.01)", a class, or a callable of the parameters.

    `functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)` is such a callable.
    """
    if not isinstance(spec, str):
        return spec(parameters)
    name, arguments = parse_call(spec)
    offered = [
        n
        for n, c in vars(torch.optim).items()
        if inspect.isclass(c) and issubclass(c, Optimizer) and c is not Optimizer
    ]
    if name not in offered:
        raise ValueError(f"torch has no optimiser {name!r}; it has {', '.join(sorted(offered))}.")
    return build(getattr(torch.optim, name), parameters, settings=arguments, what=name)


def schedule(spec: Any, optimizer: Optimizer) -> LRScheduler | ReduceLROnPlateau | None:
    """A torch learning-rate schedule: "CosineAnnealingLR(T_max=1000)" or a callable."""
    if spec is None or not isinstance(spec, str):
        return None if spec is None else spec(optimizer)
    name, arguments = parse_call(spec)
    module = torch.optim.lr_scheduler
    offered = [
        n for n in module.__all__ if n not in ("LRScheduler", "SequentialLR", "ChainedScheduler")
    ]
    if name not in offered:
        raise ValueError(f"torch has no schedule {name!r}; it has {', '.join(sorted(offered))}.")
    return build(getattr(module, name), optimizer, settings=arguments, what=name)


def describe(value: Any) -> str:
    """An objective, optimiser or schedule in words again, call syntax where it can be."""
    if isinstance(value, str):
        return value
    name = getattr(value, "__name__", type(value).__name__)
    if isinstance(value, ELBO):
        known = settings_of(value) or {}
        default = settings_of(type(value)()) if known and not isinstance(value, nn.Module) else {}
        changed = {k: v for k, v in known.items() if default is None or default.get(k) != v}
        return f"{name}({', '.join(f'{k}={v!r}' for k, v in changed.items())})"
    return str(name)
