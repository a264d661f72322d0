"""Parameters and optimizer state as flat vectors.

Each parameter becomes a view into one vector, and so does each entry of the optimizer's state, so
that an update is a handful of operations for any number of parameters. Modules, the parameter
store and `optimizer.state_dict()` see the views and keep working. A state that was loaded, or a
parameter whose storage was replaced, is detected and flattened again.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ppl_lvm.compiler.optim.update_rules import Rule, rule_of

# Options that a schedule may change; a step reads them anew. A compiled step contains whether
# momentum and weight_decay are zero.
_SCHEDULED = ("lr", "betas", "momentum", "weight_decay")

# A parameter, its optimizer, its group there.
ParameterSlot = tuple[Tensor, Optimizer, dict[str, Any]]


class ParameterGroup(ABC):
    """Parameters in one vector, and the rule that a compiled step applies to them.

    Attributes:
        parameters: leaf tensors, views of `vector`.
        vector: (n,).
        moments: each (n,), changed by the rule.
        rule: the update.
        options: of the rule.
        count: of the steps that were taken.
    """

    parameters: list[Tensor]
    vector: Tensor
    moments: list[Tensor]
    rule: Rule
    options: dict[str, Any]
    count: int

    @property
    def state(self) -> list[Tensor]:
        """All tensors that a step changes."""
        return [self.vector, *self.moments]

    def views(self, vector: Tensor) -> list[Tensor]:
        """A flat vector as tensors of the parameters' shapes."""
        pieces = vector.split([p.numel() for p in self.parameters])
        return [v.view(p.shape) for v, p in zip(pieces, self.parameters, strict=True)]

    @abstractmethod
    def scalars(self) -> list[float]:
        """Count one step; its scalars `h`."""

    @abstractmethod
    def undo_count(self, steps: int = 1, rate: Any = None) -> None:
        """Take back the count of the last steps.

        Args:
            rate: the learning rate before them, which the last one alone remembers.
        """


class FlatGroup(ParameterGroup):
    """Parameters that share optimizer, options and step count."""

    def __init__(self, slots: Sequence[ParameterSlot], rule: Rule, count: int) -> None:
        self.parameters = [p for p, _, _ in slots]
        self.rule = rule
        self.options = slots[0][2]
        self.groups = [group for _, _, group in slots]
        self._others = list({id(g): g for g in self.groups}.values())[1:]
        names = [name for name in self.options if name != "params"]
        self._scheduled = itemgetter(*[name for name in names if name in _SCHEDULED])
        self._fixed = itemgetter(*[name for name in names if name not in _SCHEDULED])
        self._fixed_values = self._fixed(self.options)  # a compiled step contains them
        self._zeros = self._is_zero(self.options)
        self.count = count
        self._states = [optimizer.state[p] for p, optimizer, _ in slots]
        self.vector = torch.cat([p.detach().reshape(-1) for p in self.parameters])  # (n,)
        self.moments = [self._moment(name) for name in rule.moments]  # each (n,)
        self._steps = torch.full((len(slots),), float(count))
        self._step_table = self._steps.numpy()  # the same memory, faster to write
        self._lay_out()

    def _moment(self, name: str) -> Tensor:
        values = [state.get(name) for state in self._states]
        pieces = [
            torch.zeros_like(p) if value is None else value
            for value, p in zip(values, self.parameters, strict=True)
        ]
        return torch.cat([piece.detach().reshape(-1) for piece in pieces])

    def _lay_out(self) -> None:
        self._addresses = []
        start = 0
        for place, (p, state) in enumerate(zip(self.parameters, self._states, strict=True)):
            stop = start + p.numel()
            p.data = self.vector[start:stop].view(p.shape)
            self._addresses.append(p.data_ptr())
            for name, moment in zip(self.rule.moments, self.moments, strict=True):
                state[name] = moment[start:stop].view(p.shape)
            if self.rule.step_count_type is not None:
                counted = self.rule.step_count_type is Tensor
                state["step"] = self._steps[place] if counted else self.count
            start = stop
        self._first_moments = [
            s.get(self.rule.moments[0]) if self.rule.moments else None for s in self._states
        ]

    def intact(self, slots: Sequence[ParameterSlot]) -> bool:
        """True if parameters, state and options are still those of this group, in its order."""
        name = self.rule.moments[0] if self.rule.moments else None
        if not self._has_same_options():
            return False
        for at, (p, optimizer, group) in enumerate(slots):
            if p.data_ptr() != self._addresses[at] or group is not self.groups[at]:
                return False
            if name is not None and optimizer.state[p].get(name) is not self._first_moments[at]:
                return False
        return True

    def _has_same_options(self) -> bool:
        options, values = self.options, self._fixed_values
        if self._fixed(options) != values or self._is_zero(options) != self._zeros:
            return False
        rates = self._scheduled(options)
        return all(self._scheduled(o) == rates and self._fixed(o) == values for o in self._others)

    @staticmethod
    def _is_zero(options: dict[str, Any]) -> list[bool]:
        return [not options.get(name) for name in ("momentum", "weight_decay")]

    def scalars(self) -> list[float]:
        if self._is_zero(self.options) != self._zeros:  # within a call of several steps
            raise ValueError(
                "optimizer: a schedule changes momentum or weight_decay from or to 0 within a call "
                "of several steps. Use steps_per_call=1, or a small number in place of 0."
            )
        self._last_rate = self.options["lr"]
        self._set_count(self.count + 1)
        scalars = self.rule.step_scalars(self.options, self.count)
        if self.rule.step_count_type is int:  # ClippedAdam decays the rate that it stores
            self._set_rate(self.options["lr"])
        return scalars

    def undo_count(self, steps: int = 1, rate: Any = None) -> None:
        self._set_count(self.count - steps)
        if rate is not None or steps == 1:
            self._set_rate(self._last_rate if rate is None else rate)

    def _set_count(self, count: int) -> None:
        self.count = count
        if self.rule.step_count_type is Tensor:
            self._step_table[:] = count
        elif self.rule.step_count_type is int:
            for state in self._states:
                state["step"] = count

    def _set_rate(self, rate: Any) -> None:
        for group in self.groups:
            group["lr"] = rate


@dataclass
class _Plan:
    """The groups of some parameters, and the places of each group's among them."""

    groups: list[FlatGroup]
    places: list[list[int]]

    def intact(self, slots: Sequence[ParameterSlot]) -> bool:
        return all(
            group.intact([slots[i] for i in places])
            for group, places in zip(self.groups, self.places, strict=True)
        )


_MAX_PLANS = 32


class FlatOptimizer:
    """Takes steps of torch and Pyro optimizers on flat vectors.

    `plan` returns None where an optimizer has no rule: call its `step` then.

    Sets of parameters that alternate share vectors: where one ends inside a vector, the vector is
    split, once.
    """

    def __init__(self) -> None:
        self._plans: dict[tuple[int, ...], _Plan] = {}

    @property
    def laid_out(self) -> bool:
        """True if any parameters have been moved into flat vectors."""
        return bool(self._plans)

    def plan(self, slots: Sequence[ParameterSlot]) -> list[FlatGroup] | None:
        """The groups of these parameters, laid out again if something was replaced."""
        key = tuple([id(p) for p, _, _ in slots])
        plan = self._plans.get(key)
        if plan is None or not plan.intact(slots):
            plan = self._plan_anew(key, slots)
        return None if plan is None else plan.groups

    def _plan_anew(self, key: tuple[int, ...], slots: Sequence[ParameterSlot]) -> _Plan | None:
        place_of = {number: place for place, number in enumerate(key)}
        present, dropped = _Plan([], []), set()
        for known in {id(g): g for plan in self._plans.values() for g in plan.groups}.values():
            places = [place_of[id(p)] for p in known.parameters if id(p) in place_of]
            whole = len(places) == len(known.parameters)
            if whole and known.intact([slots[i] for i in places]):
                present.groups.append(known)
                present.places.append(places)
            elif places:
                dropped.add(id(known))
        old = {place for places in present.places for place in places}
        kinds: dict[Any, list[int]] = {}
        rules: dict[Any, Rule] = {}
        for place, (p, optimizer, group) in enumerate(slots):
            if place in old:
                continue
            rule = rule_of(optimizer, group)
            if rule is None:
                return None
            count = _count(optimizer.state.get(p, {}), rule)
            options = repr([(k, v) for k, v in group.items() if k != "params"])
            # A schedule may move the rates of one optimizer's groups apart, also within a call.
            several = id(group) if len(optimizer.param_groups) > 1 else None
            kind = (type(optimizer), several, options, count, p.dtype, p.device)
            kinds.setdefault(kind, []).append(place)
            rules[kind] = rule
        for kind, places in kinds.items():
            of_kind = [slots[i] for i in places]
            present.groups.append(FlatGroup(of_kind, rules[kind], kind[3]))
            present.places.append(places)
        plans = [
            (k, plan)
            for k, plan in self._plans.items()
            if k != key and not any(id(group) in dropped for group in plan.groups)
        ]
        self._plans = dict([*plans[1 - _MAX_PLANS :], (key, present)])
        return present

    @torch.no_grad()
    def step(self, slots: Sequence[ParameterSlot]) -> bool:
        """One update from the parameters' `.grad`; False if an optimizer has no rule."""
        groups = self.plan(slots)
        if groups is None:
            return False
        for group in groups:
            grad = torch.cat([_gradient(p).reshape(-1) for p in group.parameters])  # (n,)
            group.rule.update(group.vector, grad, group.moments, group.scalars(), group.options)
        return True


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _count(state: dict[str, Any], rule: Rule) -> int:
    if rule.step_count_type is None:
        return 1 if state.get("momentum_buffer") is not None else 0
    return int(state.get("step", 0))
