"""Optimizers and learning-rate schedules in call syntax."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import pyro.optim
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_lvm.core.call_syntax import build, is_literal, parse_call
from ppl_lvm.core.dynamo import without_dynamo
from ppl_lvm.core.messages import reason_of, unknown

_COMPOSED_SCHEDULES = ("LRScheduler", "SequentialLR", "ChainedScheduler")


def optimizer(spec: Any, parameters: list[Tensor]) -> Optimizer:
    """A torch optimizer from "Adam(lr=0.01)", a class, or a callable of the parameters.

    `functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)` is such a callable. An optimizer of
    Pyro's, `pyro.optim.Adam({"lr": 0.01})`, stands for its torch optimizer and arguments.

    Raises:
        ValueError: torch and Pyro have no optimizer of this name, it takes no such argument, or an
            optimizer of Pyro's has arguments by parameter.
        TypeError: the value is none of these.
    """
    if isinstance(spec, pyro.optim.PyroOptim):
        spec = _torch_factory(spec)
    if isinstance(spec, Optimizer):
        raise TypeError(
            "optimizer: an optimizer of torch has its parameters already. Pass its text, as "
            "'Adam(lr=0.01)', its class, or functools.partial(torch.optim.Adam, lr=0.01)."
        )
    if not isinstance(spec, str):
        if not callable(spec):
            raise TypeError(
                f"optimizer: {spec!r} is no optimizer. Pass a text, as 'Adam(lr=0.01)'."
            )
        with without_dynamo(Optimizer.add_param_group):
            return _result(spec, parameters, Optimizer, "optimizer")
    name, arguments = parse_call(spec, "optimizer")
    available = _optimizers()
    if name not in available:
        raise ValueError(unknown("optimizer", name, available))
    with without_dynamo(Optimizer.add_param_group):
        return build(available[name], parameters, settings=arguments, what=name)


def _result(spec: Any, argument: Any, kinds: Any, name: str) -> Any:
    """The optimizer or schedule that a callable returns."""
    try:
        result = spec(argument)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: {describe(spec)} cannot be called: {reason_of(error)}. Pass a text, as "
            "'Adam(lr=0.01)', or a callable of the parameters (of the optimizer for a schedule)."
        ) from error
    if not isinstance(result, kinds):
        raise TypeError(
            f"{name}: {describe(spec)} returned a {type(result).__name__}. Pass a callable that "
            f"returns a torch {name}."
        )
    return result


def _optimizers() -> dict[str, Any]:
    """Name -> class, of torch and of Pyro."""
    classes = {name: c for name, c in vars(torch.optim).items() if inspect.isclass(c)}
    pyros = {"ClippedAdam": pyro.optim.clipped_adam.ClippedAdam}
    pyros["AdagradRMSProp"] = pyro.optim.adagrad_rmsprop.AdagradRMSProp
    pyros["DCTAdam"] = pyro.optim.dct_adam.DCTAdam
    torchs = {n: c for n, c in classes.items() if issubclass(c, Optimizer) and c is not Optimizer}
    return torchs | pyros


def _torch_factory(spec: pyro.optim.PyroOptim) -> functools.partial[Optimizer]:
    """The torch optimizer and the arguments of an optimizer of Pyro's.

    Raises:
        ValueError: its arguments are a function, or it also clips or schedules.
    """
    if isinstance(spec, pyro.optim.PyroLRScheduler):
        raise ValueError(
            "optimizer: a scheduler of Pyro's is an optimizer with a schedule. Pass both: "
            "optimizer='Adam(lr=0.01)', schedule='ExponentialLR(gamma=0.999)'."
        )
    if callable(spec.pt_optim_args):
        raise ValueError(
            "optimizer: an optimizer of Pyro's with a function of the parameter for arguments has "
            "no counterpart here. Pass a callable that makes a torch optimizer with parameter "
            "groups from the list of parameters."
        )
    if spec.pt_clip_args:
        raise ValueError(
            f"optimizer: clip_args={spec.pt_clip_args} of Pyro's optimizer clip each parameter. "
            "Omit them, and pass clip_norm= for the norm of the whole gradient, nats per row."
        )
    return functools.partial(spec.pt_optim_constructor, **spec.pt_optim_args)


def schedule(spec: Any, optimizer: Optimizer) -> LRScheduler | ReduceLROnPlateau | None:
    """A learning-rate schedule from "CosineAnnealingLR(T_max=1000)" or a callable; None for None.

    Raises:
        ValueError: torch has no schedule of this name, or it takes no such argument.
    """
    if spec is None:
        return None
    if not isinstance(spec, str):
        return _result(spec, optimizer, (LRScheduler, ReduceLROnPlateau), "schedule")
    name, arguments = parse_call(spec, "schedule")
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
    if isinstance(value, pyro.optim.PyroOptim):
        return describe(_torch_factory(value))
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
