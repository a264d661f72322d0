"""Vectorize R recorded steps with `vmap`.

    graph(*parameters, *batch, *draws, *sources, *constants) -> (*losses, *gradients),

Every tensor gains a leading dimension R. Random numbers are drawn outside the graph: each restart
has its generator, so that it draws the numbers of a separate run. That is possible where a draw
takes a shape and numbers only, as for a reparameterized normal. A draw whose parameters are
computed in the step (a Bernoulli's) cannot be vectorized.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_lvm.compiler.backend.compiled_step import CompiledStep
from ppl_lvm.compiler.backend.numerics import all_finite
from ppl_lvm.compiler.backend.threads import single_thread_if
from ppl_lvm.compiler.graph.ir import Recording
from ppl_lvm.compiler.graph.schedule import is_random
from ppl_lvm.compiler.optim.adapters import TorchOptimizerAdapter
from ppl_lvm.compiler.optim.flat import FlatGroup, FlatOptimizer, ParameterSlot
from ppl_lvm.core.errors import CannotCaptureError
from ppl_lvm.core.rng import preserve_rng

_aten = torch.ops.aten
_FILL_OPERATIONS = ("normal_", "uniform_", "exponential_", "bernoulli_", "log_normal_", "cauchy_")
_CONSTRUCTORS = ("empty", "new_empty", "empty_like", "zeros", "new_zeros", "zeros_like")


class VectorizedRecording:
    """R steps as one recording, and its random numbers.

    Attributes:
        recording: of all restarts; its batch is the batch followed by the draws.
        parameters: stacked, one leaf (R, …) for each parameter of a restart.

    Args:
        recordings: of the same operations.
        parameters: of each restart, in the order of its recording.
        batches: one batch for each restart; `shared` says that all are the same tensors.
        shared_sources: of each restart, a source that all share; the first one's is read.
        generators: one for each restart.

    Raises:
        CannotCaptureError: the recordings differ, keep state, or draw otherwise.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        parameters: Sequence[Sequence[Tensor]],
        batches: Sequence[Sequence[Tensor]],
        shared: bool,
        shared_sources: Sequence[Tensor],
        generators: Sequence[torch.Generator],
    ) -> None:
        first = recordings[0]
        self._generators = generators
        _reject_differences(recordings)
        self._shared_sources = {id(tensor) for tensor in shared_sources}
        self._draws = _draws(first.module.graph)
        example = [*parameters[0], *batches[0], *first.sources, *first.constants]
        values = _values(first.module, self._draws, example)
        if any(value.device.type != "cpu" for value in values):
            raise CannotCaptureError("it draws on a device, where the restarts share a generator")
        self.draw_buffers = [torch.stack([value] * len(recordings)) for value in values]
        leaves = [torch.stack([p.detach() for p in column]) for column in _columns(parameters)]
        self.parameters = [leaf.requires_grad_(True) for leaf in leaves]
        sources = [
            self._stack_source(column) for column in _columns([r.sources for r in recordings])
        ]
        constants = [_stack(column) for column in _columns([r.constants for r in recordings])]
        batch: list[Any] = [
            column[0] if shared else torch.stack(list(column)) for column in _columns(batches)
        ]
        inputs = [
            leaves,
            batch,
            self.draw_buffers,
            [s for s, _ in sources],
            [c for c, _ in constants],
        ]
        dims: list[int | None] = [0] * len(leaves)
        dims += [None if shared else 0] * len(batch)
        dims += [0] * len(values)
        dims += [dim for _, dim in (*sources, *constants)]
        pure = _functional(first.module, self._draws, len(leaves) + len(batch), [*example, *values])
        module = _vectorize(pure, [tensor for part in inputs for tensor in part], dims)
        self.recording = Recording(
            module=module,
            sources=inputs[3],
            constants=inputs[4],
            active=first.active,
            results=first.results,
            num_losses=first.num_losses,
            mutated=[],
            rebinds=False,
            draws=bool(self._draws),
            tables=(len(recordings) * first.tables[0], len(recordings) * first.tables[1]),
            reads=len(recordings) * first.reads,
        )

    def draw(self) -> list[Tensor]:
        """New random numbers for each restart, (R, …) each."""
        for node, buffer in zip(self._draws, self.draw_buffers, strict=True):
            target: Any = node.target
            for place, generator in enumerate(self._generators):
                target(buffer[place], *node.args[1:], **node.kwargs, generator=generator)
        return self.draw_buffers

    def _stack_source(self, column: Sequence[Tensor]) -> tuple[Tensor, int | None]:
        if id(column[0]) in self._shared_sources:
            return column[0], None
        return _stack(column)


def _columns(rows: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, ...]]:
    return list(zip(*rows, strict=True))


def _stack(column: Sequence[Tensor]) -> tuple[Tensor, int | None]:
    """One tensor if all are equal, else stacked; and its dimension of restarts."""
    values = [tensor.detach() for tensor in column]
    if all(torch.equal(values[0], value) for value in values[1:]):
        return values[0], None
    return torch.stack(values), 0


def _reject_differences(recordings: Sequence[Recording]) -> None:
    first = recordings[0]
    for other in recordings:
        if other.mutated or other.rebinds:
            raise CannotCaptureError("it keeps state from step to step")
        theirs, ours = other.module.graph.nodes, first.module.graph.nodes
        if len(theirs) != len(ours) or any(
            a.target != b.target for a, b in zip(theirs, ours, strict=True) if a.op != "placeholder"
        ):
            raise CannotCaptureError("the restarts do not take the same operations")


def _draws(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that draw: each fills a tensor that was created for it."""
    draws = []
    for node in graph.nodes:
        if not is_random(node):
            continue
        name = str(node.target).split(".")[1]
        filled = node.args[0] if node.args else None
        maker = isinstance(filled, fx.Node) and str(filled.target).split(".")[1:2]
        others = [a for a in (*node.args[1:], *node.kwargs.values()) if isinstance(a, fx.Node)]
        if name not in _FILL_OPERATIONS or not maker or maker[0] not in _CONSTRUCTORS or others:
            raise CannotCaptureError(f"it draws by {name}, with parameters computed in the step")
        draws.append(node)
    return draws


class _DrawSubstitution(fx.Interpreter):
    """Runs a graph with these random numbers, and operations on lists tensor by tensor."""

    def __init__(self, module: fx.GraphModule, draws: Sequence[fx.Node], values: Any) -> None:
        super().__init__(module)
        self._numbers = dict(zip(draws, values, strict=True))

    def run_node(self, node: fx.Node) -> Any:
        if node in self._numbers:
            value = self._numbers[node]
            self.env[node.args[0]] = value  # type: ignore[index]  # the filled tensor
            return value
        name = str(node.target)
        if name.startswith("aten._foreach_"):
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            one = {"mul": torch.mul, "norm": torch.linalg.vector_norm}.get(name[14:].split(".")[0])
            if one is None:
                raise CannotCaptureError(f"{name} cannot be vectorized")
            return [one(tensor, *args[1:], **kwargs) for tensor in args[0]]
        return super().run_node(node)


class _FillDecomposition(fx.Interpreter):
    """Runs a graph; `fill`, which has no rule for `vmap`, by `full_like`."""

    def run_node(self, node: fx.Node) -> Any:
        if node.target is _aten.fill.Scalar:
            (tensor, value), _ = self.fetch_args_kwargs_from_env(node)
            return torch.full_like(tensor, value)
        return super().run_node(node)


def _values(
    module: fx.GraphModule, draws: Sequence[fx.Node], example: Sequence[Tensor]
) -> list[Tensor]:
    """The numbers that the nodes draw in one run; the generator is restored."""
    values: dict[fx.Node, Tensor] = {}

    class Observer(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if node in draws:
                values[node] = value.clone(memory_format=torch.contiguous_format)
            return value

    with torch.no_grad(), preserve_rng():
        Observer(module).run(*example)
    return [values[node] for node in draws]


def _functional(
    module: fx.GraphModule, draws: Sequence[fx.Node], num_inputs: int, example: Sequence[Tensor]
) -> fx.GraphModule:
    """The functional graph with its draws as inputs after the batch.

    Args:
        num_inputs: of the parameters and the batch.
        example: the inputs of the graph, and then the draws.
    """
    count = len(example) - len(draws)
    order = [*range(num_inputs), *range(count, len(example)), *range(num_inputs, count)]

    def run(*flat: Tensor) -> Any:
        stop = num_inputs + len(draws)
        numbers = flat[num_inputs:stop]
        return _DrawSubstitution(module, draws, numbers).run(*flat[:num_inputs], *flat[stop:])

    with torch.no_grad():
        return make_fx(functionalize(run), tracing_mode="real")(
            *[example[i].detach() for i in order]
        )


def _vectorize(
    pure: fx.GraphModule, inputs: Sequence[Tensor], dims: Sequence[int | None]
) -> fx.GraphModule:
    """`vmap` of a functional graph, as a graph."""

    def one(*flat: Tensor) -> Any:
        return _FillDecomposition(pure).run(*flat)

    with torch.no_grad():
        graph = make_fx(vmap(one, in_dims=tuple(dims)), tracing_mode="real")(
            *[tensor.detach() for tensor in inputs]
        )
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


class VectorizedStep:
    """A whole step of R restarts, with one optimizer for the stacked parameters.

    Args:
        batch: of the shapes that this step will serve.
        optimizer: of the stacked parameters, with a flat rule.
        flat: their vectors, the same for all kinds of batches.

    Raises:
        CannotCaptureError: the optimizer has no flat rule.
    """

    def __init__(
        self,
        vectorized: VectorizedRecording,
        batch: list[Tensor],
        optimizer: torch.optim.Optimizer,
        flat: FlatOptimizer,
        compiled: bool,
    ) -> None:
        self.vectorized, self._optimizer, self._flat = vectorized, optimizer, flat
        self._active = vectorized.recording.trained(vectorized.parameters)
        groups = self._plan()
        self._compiled: CompiledStep | None = None
        if compiled:
            inputs = [*batch, *vectorized.draw_buffers]
            recording, leaves = vectorized.recording, vectorized.parameters
            self._compiled = CompiledStep(recording, leaves, groups, inputs, guarded=True)
            with single_thread_if(recording.small):
                self._compiled.compile(inputs, same_random=True)

    def __call__(self, batch: list[Tensor]) -> Any:
        """Take the step; the losses of all restarts, (R,) each. None: one is not finite."""
        with single_thread_if(self.vectorized.recording.small):
            return self._take(batch)

    def _take(self, batch: list[Tensor]) -> Any:
        recording = self.vectorized.recording
        inputs = [*batch, *self.vectorized.draw()]
        if self._compiled is not None:
            losses = self._compiled(inputs)
            if not all_finite(losses):
                self._compiled.undo_count()
                return None
            return losses
        leaves = self.vectorized.parameters
        with torch.no_grad():
            out = recording.module(*leaves, *inputs, *recording.sources, *recording.constants)
        losses = recording.losses(out)
        if not all_finite(losses):
            return None
        for leaf, gradient in zip(self._active, out[recording.num_losses :], strict=True):
            leaf.grad = gradient
        self._flat.step(self._slots())
        for leaf in self._active:
            leaf.grad = None
        return losses

    def _plan(self) -> list[FlatGroup]:
        groups = self._flat.plan(self._slots())
        if groups is None:
            raise CannotCaptureError("the optimizer has no flat rule")
        return groups

    def _slots(self) -> list[ParameterSlot]:
        slots = TorchOptimizerAdapter(self._optimizer).parameter_slots(self._active)
        assert slots is not None
        return slots
