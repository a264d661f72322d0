"""Recorded operations of a log density, evaluated at many vectors.

The program runs once, at one vector, while a tape takes its tensor operations and those of its
gradient. The record is evaluated at many vectors by `torch.func.vmap`; where it is short, the
operations of that are recorded too.

A factorization that does not exist raises no error in a record: ℓ is −∞ at that vector alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ppl_lvm.compiler.capture.recorder import record
from ppl_lvm.compiler.graph.build import build
from ppl_lvm.compiler.graph.functionalize import functional
from ppl_lvm.compiler.graph.ir import Ref, Tape

LONG = 1000  # operations, of which a record for many vectors costs more than it saves


class RecordedDensity:
    """ℓ, ∇ℓ and values of sites, as recorded at one vector.

    Args:
        function: a vector (D,) that requires a gradient -> ℓ and values.
        vector: where the function is recorded.

    Raises:
        Exception: of any kind, where an operation cannot be recorded.
    """

    def __init__(self, function: Callable[[Tensor], Sequence[Tensor]], vector: Tensor) -> None:
        leaf = vector.detach().clone().requires_grad_()

        def step() -> tuple[Tensor, ...]:
            with torch.enable_grad():
                outputs = function(leaf)
                outputs[0].backward()
            return tuple(output.detach() for output in outputs)

        outputs, tape = record(step, [leaf], [])
        check: Any = torch.ops.aten._linalg_check_errors.default
        checks = [call.leaves for call in tape.calls if call.op is check]
        failures = [leaf for leaves in checks for leaf in leaves if isinstance(leaf, Ref)]
        tape.results = (*tape.results, *failures)
        module, self._inputs = _graph(tape)
        *values, gradient = range(len(outputs) + len(failures) + 1)
        self._density = _part(module, [0, gradient, *values[len(outputs) :]])
        self._values = _part(module, values[1 : len(outputs)])
        self._calls: dict[int, Callable[[Tensor], Sequence[Tensor]]] = {}

    @property
    def long(self) -> bool:
        """True if a record for many vectors costs more than it saves."""
        return len(self._density.graph.nodes) > LONG

    @torch.no_grad()
    def density(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """ℓ (B,) and ∇ℓ (B, D) of vectors (B, D)."""
        if not self.long and len(u) not in self._calls:
            self._calls[len(u)] = self._record(u)
        call = self._calls.get(len(u), self._density_of_many)
        value, gradient, *failures = call(u)
        for info in failures:
            failed = info.reshape(len(u), -1).ne(0).any(1)
            value = value.masked_fill(failed, -math.inf)
            gradient = gradient.masked_fill(failed.unsqueeze(1), 0)
        return value, gradient

    @torch.no_grad()
    def values(self, u: Tensor) -> Sequence[Tensor]:
        """Values (B, …) of the sites."""
        return self._batched(self._values, u)

    def _density_of_many(self, u: Tensor) -> Sequence[Tensor]:
        return self._batched(self._density, u)

    def _batched(self, module: GraphModule, u: Tensor) -> Sequence[Tensor]:
        axes = (0, *[None] * len(self._inputs))
        with _without_fallback_warnings():
            outputs: Sequence[Tensor] = torch.func.vmap(module, in_dims=axes)(u, *self._inputs)
            return outputs

    def _record(self, u: Tensor) -> Callable[[Tensor], Sequence[Tensor]]:
        """The record for so many vectors."""
        _, tape = record(lambda: self._density_of_many(u), [], [u])
        module, inputs = _graph(tape)
        return lambda u: module(u, *inputs)


def _graph(tape: Tape) -> tuple[GraphModule, list[Tensor]]:
    """The graph of a tape, and the tensors that it takes after its inputs."""
    recording = build(tape, {}, {}, constant_sources=True)
    if recording.mutated or recording.draws:
        raise ValueError("The program changes tensors or draws random numbers.")
    graph = functional(recording.module.graph)  # `vmap` has more rules for these
    module = recording.module if graph is None else GraphModule(recording.module, graph)
    return module, [*recording.sources, *recording.constants]


def _part(module: GraphModule, outputs: Sequence[int]) -> GraphModule:
    """The operations of some of the outputs alone."""
    graph = Graph()
    output: Any = graph.graph_copy(module.graph, {})
    graph.output(tuple(output[place] for place in outputs))
    graph.eliminate_dead_code(_is_needed)
    return GraphModule(module, graph)


def _is_needed(node: Node) -> bool:
    """True for an unused node to keep: a change in place."""
    schema = getattr(node.target, "_schema", None)
    return node.op in ("placeholder", "output") or bool(schema is not None and schema.is_mutable)


@contextmanager
def _without_fallback_warnings() -> Iterator[None]:
    # Operations without a rule for `vmap` run once per vector, and torch prints a line each time.
    functorch: Any = torch._C._functorch
    functorch._set_vmap_fallback_warning_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_warning_enabled(True)
