"""Optimizers and learning-rate schedules in call syntax."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_lvm.core.call_syntax import build, is_literal, parse_call
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
    """Text of an objective, optimizer or schedule, in call syntax where possible.

    >>> describe(functools.partial(torch.optim.SGD, lr=0.1))
    'SGD(lr=0.1)'
    """
    if isinstance(value, str):
        return value
    if isinstance(value, functools.partial) and not value.args:
        return _call(describe(value.func), value.keywords)
    name = getattr(value, "__name__", type(value).__name__)
    return _call(name, elbo_settings(value)) if isinstance(value, ELBO) else str(name)


def elbo_settings(objective: ELBO) -> dict[str, Any]:
    """Constructor arguments of an objective, from attributes; those that differ from defaults.

    Arguments of this package's estimators are all listed, except None.
    """
    settings = {}
    for p in inspect.signature(type(objective)).parameters.values():
        value = getattr(objective, p.name, p.default)
        if p.name == "max_plate_nesting" and adds_particle_plate(objective):
            value -= 1
        default = None if isinstance(objective, nn.Module) else p.default
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and value != default:
            settings[p.name] = float(value) if isinstance(value, float) else value
    return settings


def adds_particle_plate(objective: ELBO) -> bool:
    """True if Pyro's constructor adds one to `max_plate_nesting`, for a plate of particles."""
    vectorized = bool(objective.vectorize_particles) and objective.num_particles > 1
    return vectorized and not isinstance(objective, nn.Module)


def _call(name: str, settings: Mapping[str, Any]) -> str:
    """Call syntax with the settings that are literals."""
    literals = {k: repr(v) for k, v in settings.items() if is_literal(v)}
    return f"{name}({', '.join(f'{k}={v}' for k, v in literals.items())})"
