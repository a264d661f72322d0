"""Parameters and optimiser state as flat vectors, seen by everyone else as what they were.

Each parameter becomes a view into one vector, and so does each entry of the optimiser's state, so
that an update is a handful of operations whatever the number of parameters. Modules, the
parameter store and `optimizer.state_dict()` keep working, since they see the views; a state that
was loaded, or a parameter whose storage was replaced, is noticed and taken in anew.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ppl_lvm.compiler.optim.update_rules import Rule, rule_of

ParameterSlot = tuple[
    Tensor, Optimizer, dict[str, Any]
]  # a parameter, its optimiser, its group there


class FlatGroup:
    """Parameters that share optimiser, options and step count."""

    def __init__(
        self, owned: Sequence[ParameterSlot], places: list[int], rule: Rule, count: int
    ) -> None:
        self.parameters = [owned[i][0] for i in places]
        self.places = places
        self.rule = rule
        self.options = owned[places[0]][2]
        self.groups = [owned[i][2] for i in places]
        self.count = count
        self._states = [owned[i][1].state[owned[i][0]] for i in places]
        self.vector = torch.cat([p.detach().reshape(-1) for p in self.parameters])  # (n,)
        self.moments = [self._moment(name) for name in rule.moments]  # each (n,)
        self._steps = torch.full((len(places),), float(count))
        self._step_table = self._steps.numpy()  # the same memory, quicker to count in
        self._lay_out()

    def _moment(self, name: str) -> Tensor:
        known = zip(self._states, self.parameters, strict=True)
        values = [s.get(name) for s, _ in known]
        pieces = [
            torch.zeros_like(p) if value is None else value
            for value, p in zip(values, self.parameters, strict=True)
        ]
        return torch.cat([piece.detach().reshape(-1) for piece in pieces])

    def _lay_out(self) -> None:
        self._moment_views: list[Tensor] = []
        self._addresses = []
        start = 0
        for place, (p, state) in enumerate(zip(self.parameters, self._states, strict=True)):
            stop = start + p.numel()
            p.data = self.vector[start:stop].view(p.shape)
            self._addresses.append(p.data_ptr())
            for name, moment in zip(self.rule.moments, self.moments, strict=True):
                state[name] = moment[start:stop].view(p.shape)
            if self.rule.counts is not None:
                state["step"] = self._steps[place] if self.rule.counts is Tensor else self.count
            start = stop
        self._seen = [
            s.get(self.rule.moments[0]) if self.rule.moments else None for s in self._states
        ]

    def views(self, vector: Tensor) -> list[Tensor]:
        """A flat vector as tensors of the parameters' shapes."""
        pieces = vector.split([p.numel() for p in self.parameters])
        return [v.view(p.shape) for v, p in zip(pieces, self.parameters, strict=True)]

    def intact(self, owned: Sequence[ParameterSlot]) -> bool:
        """Whether parameters, state and learning rates are still the ones laid out here."""
        name = self.rule.moments[0] if self.rule.moments else None
        lr = self.options["lr"]
        for at, place in enumerate(self.places):
            p, optimizer, group = owned[place]
            if p.data_ptr() != self._addresses[at] or group["lr"] != lr:
                return False
            if name is not None and optimizer.state[p].get(name) is not self._seen[at]:
                return False
        return True

    def scalars(self) -> list[float]:
        """Count one step; its numbers `h`."""
        self._last_rate = self.options["lr"]
        self._count(self.count + 1)
        numbers = self.rule.step_scalars(self.options, self.count)
        if self.rule.counts is int:  # ClippedAdam decays the rate it stores
            self._rate(self.options["lr"])
        return numbers

    def undo_count(self, steps: int = 1) -> None:
        """Do not count the last step; of several, whoever changed the rates puts them back."""
        self._count(self.count - steps)
        if steps == 1:
            self._rate(self._last_rate)

    def _count(self, count: int) -> None:
        self.count = count
        if self.rule.counts is Tensor:
            self._step_table[:] = count
        elif self.rule.counts is int:
            for state in self._states:
                state["step"] = count

    def _rate(self, rate: Any) -> None:
        for group in self.groups:
            group["lr"] = rate


class FlatOptimizer:
    """Takes steps of torch and Pyro optimisers on flat vectors.

    `plan` returns None where an optimiser has no flat rule: call its own `step` then.
    """

    def __init__(self) -> None:
        self._groups: list[FlatGroup] = []
        self._key: tuple[int, ...] = ()

    @property
    def laid_out(self) -> bool:
        """Whether any parameters have been moved into flat vectors."""
        return bool(self._groups)

    def plan(self, owned: Sequence[ParameterSlot]) -> list[FlatGroup] | None:
        """The groups that step these parameters, laid out anew if something was replaced."""
        key = tuple([id(p) for p, _, _ in owned])
        if key == self._key and all(group.intact(owned) for group in self._groups):
            return self._groups
        kinds: dict[Any, list[int]] = {}
        rules: dict[Any, Rule] = {}
        for place, (p, optimizer, group) in enumerate(owned):
            rule = rule_of(optimizer, group)
            if rule is None:
                return None
            count = _count(optimizer.state.get(p, {}), rule)
            options = repr([(k, v) for k, v in group.items() if k != "params"])
            kind = (type(optimizer), options, count, p.dtype, p.device)
            kinds.setdefault(kind, []).append(place)
            rules[kind] = rule
        self._groups = [FlatGroup(owned, at, rules[k], k[2]) for k, at in kinds.items()]
        self._key = key
        return self._groups

    @torch.no_grad()
    def step(self, owned: Sequence[ParameterSlot]) -> bool:
        """One update from the parameters' `.grad`; False if there is no flat rule."""
        groups = self.plan(owned)
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
    if rule.counts is None:
        return 1 if state.get("momentum_buffer") is not None else 0
    return int(state.get("step", 0))
