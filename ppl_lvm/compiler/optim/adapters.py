"""Adapters of torch's and Pyro's optimizers to one protocol."""

from collections.abc import Callable
from typing import Protocol

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from ppl_lvm.compiler.optim.flat import ParameterSlot


class OptimizerAdapter(Protocol):
    """The calls of an optimizer that a step needs."""

    def parameter_slots(self, parameters: list[Tensor]) -> list[ParameterSlot] | None:
        """Each parameter with its optimizer and group; None if an optimizer does not exist yet."""

    def clips(self) -> bool:
        """True if gradients are changed before the update."""

    def clip(self, parameter: Tensor) -> None:
        """Change the parameter's `.grad`."""

    def step(self, parameters: list[Tensor]) -> None:
        """Take the optimizer's step, clipping included."""


class TorchOptimizerAdapter:
    """A torch optimizer over all parameters, or a function that makes one of a list of them."""

    def __init__(self, optimizer: Optimizer | Callable[[list[Tensor]], Optimizer]) -> None:
        self._make = optimizer
        self.optimizer = optimizer if isinstance(optimizer, Optimizer) else None
        self._admitted: dict[int, Tensor] = {}

    def parameter_slots(self, parameters: list[Tensor]) -> list[ParameterSlot] | None:
        if self.optimizer is None:
            return None
        self._admit(parameters)
        optimizer = self.optimizer
        optimizer._opt_called = True  # type: ignore[attr-defined]  # schedules check it
        groups = optimizer.param_groups
        if len(groups) == 1:
            return [(p, optimizer, groups[0]) for p in parameters]
        group_of = {id(p): group for group in groups for p in group["params"]}
        return [(p, optimizer, group_of[id(p)]) for p in parameters]

    def clips(self) -> bool:
        return False

    def clip(self, parameter: Tensor) -> None:
        """Do nothing: torch's optimizers leave clipping to the loop."""

    def step(self, parameters: list[Tensor]) -> None:
        if self.optimizer is None:
            assert not isinstance(self._make, Optimizer)
            self.optimizer = self._make(parameters)
        self._admit(parameters)
        self.optimizer.step()

    def _admit(self, parameters: list[Tensor]) -> None:
        """Add parameters that had no gradient yet when the optimizer was made to its group."""
        if self.optimizer is self._make or self.optimizer is None:
            return
        for p in parameters:
            if id(p) not in self._admitted:
                self._admitted[id(p)] = p
                params = self.optimizer.param_groups[0]["params"]
                if not any(p is known for known in params):
                    params.append(p)


class PyroOptimizerAdapter:
    """A `pyro.optim` optimizer: one torch optimizer per parameter, made at its first step."""

    def __init__(self, optimizer: PyroOptim) -> None:
        self.optimizer = optimizer

    def parameter_slots(self, parameters: list[Tensor]) -> list[ParameterSlot] | None:
        if any(p not in self.optimizer.optim_objs for p in parameters):
            return None
        slots: list[ParameterSlot] = []
        for p in parameters:
            wrapped = self.optimizer.optim_objs[p]
            inner = getattr(wrapped, "optimizer", wrapped)  # a schedule wraps its optimizer
            inner._opt_called = True
            slots.append((p, inner, inner.param_groups[0]))
        return slots

    def clips(self) -> bool:
        return any(clip is not None for clip in self.optimizer.grad_clip.values())

    def clip(self, parameter: Tensor) -> None:
        if self.optimizer.grad_clip[parameter] is not None:
            self.optimizer.grad_clip[parameter](parameter)

    def step(self, parameters: list[Tensor]) -> None:
        self.optimizer(parameters)


def functional_clip(adapter: OptimizerAdapter) -> Callable[[Tensor, Tensor], Tensor]:
    """Clipping as a function (parameter, gradient) -> gradient, which can be traced."""

    def clip(parameter: Tensor, gradient: Tensor) -> Tensor:
        # The optimizer's clipping changes `.grad`: it gets the traced gradient there for a moment.
        previous, parameter.grad = parameter.grad, None
        try:
            with torch.no_grad():
                parameter.grad = gradient
                adapter.clip(parameter)
            assert parameter.grad is not None
            return parameter.grad
        finally:
            parameter.grad = previous

    return clip
