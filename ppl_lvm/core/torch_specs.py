"""Optimizers and learning-rate schedules in call syntax."""

import inspect
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_lvm.core.call_syntax import build, parse_call, settings_of
from ppl_lvm.core.messages import unknown

_COMPOSED_SCHEDULES = ("LRScheduler", "SequentialLR", "ChainedScheduler")


def optimizer(spec: Any, parameters: list[Tensor]) -> Optimizer:
    """A torch optimizer from "Adam(lr=0.01)", a class, or a callable of the parameters.

    `functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)` is such a callable.

    Raises:
        ValueError: torch has no optimizer of this name, or it takes no such argument.
    """
    if not isinstance(spec, str):
        return spec(parameters)
    name, arguments = parse_call(spec)
    available = [
        n
        for n, c in vars(torch.optim).items()
        if inspect.isclass(c) and issubclass(c, Optimizer) and c is not Optimizer
    ]
    if name not in available:
        raise ValueError(unknown("torch optimizer", name, available))
    return build(getattr(torch.optim, name), parameters, settings=arguments, what=name)


def schedule(spec: Any, optimizer: Optimizer) -> LRScheduler | ReduceLROnPlateau | None:
    """A learning-rate schedule from "CosineAnnealingLR(T_max=1000)" or a callable; None for None.

    Raises:
        ValueError: torch has no schedule of this name, or it takes no such argument.
    """
    if spec is None:
        return None
    if not isinstance(spec, str):
        return spec(optimizer)
    name, arguments = parse_call(spec)
    module = torch.optim.lr_scheduler
    available = [n for n in module.__all__ if n not in _COMPOSED_SCHEDULES]
    if name not in available:
        raise ValueError(unknown("torch schedule", name, available))
    return build(getattr(module, name), optimizer, settings=arguments, what=name)


def describe(value: Any) -> str:
    """Text of an objective, optimizer or schedule, in call syntax where possible."""
    if isinstance(value, str):
        return value
    name = getattr(value, "__name__", type(value).__name__)
    if isinstance(value, ELBO):
        settings = settings_of(value) or {}
        has_defaults = settings and not isinstance(value, nn.Module)
        defaults = settings_of(type(value)()) if has_defaults else {}
        changed = {k: v for k, v in settings.items() if defaults is None or defaults.get(k) != v}
        return f"{name}({', '.join(f'{k}={v!r}' for k, v in changed.items())})"
    return str(name)
