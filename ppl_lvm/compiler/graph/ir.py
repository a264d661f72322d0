"""Intermediate representations of a step: tape and recording.

A `Tape` lists the tensor operations of one eager step. A `Recording` is the graph made from it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

# Bytes of the largest tensor of a step that one thread takes, see `backend.threads`.
SMALL = 2**17


@dataclass(frozen=True)
class Ref:
    """The index of a tensor on a tape."""

    index: int


@dataclass
class Call:
    """One operation: its flattened arguments `leaves` and the indices of its `results`."""

    op: Any
    leaves: list[Any]
    spec: Any
    results: list[int]
    shapes: list[tuple[Any, ...]]  # (shape, dtype) of each result
    reads: bool  # returned a number to Python
    where: str | None

    def arguments(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments, made of these leaves."""
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs


@dataclass
class Source:
    """A tensor that the step read but did not create; `before` is its value when first read."""

    tensor: Tensor
    index: int
    before: Tensor
    where: str | None


@dataclass
class Constant:
    """A tensor created from Python numbers within the step (`torch.tensor(0.5)`)."""

    index: int
    value: Tensor
    where: str | None


@dataclass
class Tape:
    """The operations of one step. Indices 0, 1, … are the parameters, then the batch."""

    input_dtypes: tuple[torch.dtype, ...]
    calls: list[Call] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    constants: dict[int, Constant] = field(default_factory=dict)
    losses: Any = None  # as the step returned them
    results: Any = None  # the same structure with tensors replaced by Ref
    gradients: list[int | None] = field(default_factory=list)  # of each parameter
    live_results: dict[int, Tensor] = field(default_factory=dict)  # still referenced afterwards
    hooked: list[int] = field(default_factory=list)  # places of parameters, in backward's order


@dataclass
class Recording:
    """A step as a graph, and the tensors that it is called with.

    `module(*parameters, *batch, *sources, *constants)` returns the flattened losses followed by
    the gradients of those parameters whose place in `active` is true.
    """

    module: fx.GraphModule
    sources: list[Tensor]
    constants: list[Tensor]
    active: list[bool]
    results: Any  # structure of the loss: Ref stands for the next returned tensor
    num_losses: int
    mutated: list[int]  # places in `sources` that the step changes
    rebinds: bool  # some of them by binding a new tensor
    draws: bool  # random numbers
    tables: tuple[int, int]  # bytes of the largest result, and of all results
    reads: int = 0  # bytes of the largest input
    hooked: list[int] = field(default_factory=list)  # places of parameters whose hooks run

    @property
    def small(self) -> bool:
        """True if no tensor in it is large enough for a second thread."""
        return max(self.tables[0], self.reads) <= SMALL

    def trained(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """The parameters that receive a gradient from the step."""
        return [p for p, used in zip(parameters, self.active, strict=True) if used]

    def losses(self, flat: Iterable[Tensor]) -> Any:
        """The loss as the program returned it, from the graph's first outputs."""
        values = iter(flat)
        if isinstance(self.results, Ref):
            return next(values)
        return pytree.tree_map(
            lambda leaf: next(values) if isinstance(leaf, Ref) else leaf, self.results
        )
