"""R recordings of the same operations as one: every tensor of theirs becomes R tensors abreast.

    graph(*parameters, *batch, *draws, *sources, *constants) -> (*losses, *gradients),

all with R leading, made by `vmap` from the graph of one. A random number is drawn outside: each of
the R has a generator of its own, so that its numbers are those of its own run. That can be done
where a draw asks for a shape and numbers alone, as a reparameterised normal does; a draw whose
parameters come from the step itself (a Bernoulli's) cannot be had this way.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_lvm.compiler.backend.compiled_step import CompiledStep
from ppl_lvm.compiler.backend.threads import single_thread_if
from ppl_lvm.compiler.errors import CannotCaptureError
from ppl_lvm.compiler.graph.build import Recording
from ppl_lvm.compiler.optim.adapters import TorchOptimizerAdapter
from ppl_lvm.compiler.optim.flat import FlatGroup, FlatOptimizer
from ppl_lvm.compiler.training_step import finite
from ppl_lvm.core.rng import preserve_rng

_aten = torch.ops.aten
_FILLS = ("normal_", "uniform_", "exponential_", "bernoulli_", "log_normal_", "cauchy_")
_MAKES = ("empty", "new_empty", "empty_like", "zeros", "new_zeros", "zeros_like")


class VectorizedRecording:
    """R steps as one recording, and its random numbers.

    Attributes:
        recording: of the R together; its batch is the batch followed by the draws.
        parameters: stacked, one leaf (R, …) for each of theirs.

    Args:
        recordings: of the same operations.
        parameters: those of each, in the order of its recording.
        batches: one batch of each; `shared` says that all are the same tensors.
        together: sources that are to be one tensor for all: each one's, the first's is read.
        generators: one for each.

    Raises:
        CannotCaptureError: they differ, keep state, or draw otherwise.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        parameters: Sequence[Sequence[Tensor]],
        batches: Sequence[Sequence[Tensor]],
        shared: bool,
        together: Sequence[Tensor],
        generators: Sequence[torch.Generator],
    ) -> None:
        first = recordings[0]
        self._generators = generators
        _refuse_different(recordings)
        self._shared_sources = {id(tensor) for tensor in together}
        self._draws = _draws(first.module.graph)
        example = [*parameters[0], *batches[0], *first.sources, *first.constants]
        drawn = _values(first.module, self._draws, example)
        if any(value.device.type != "cpu" for value in drawn):
            raise CannotCaptureError("it draws on a device, where the starts share a generator")
        self._buffers = [torch.stack([value] * len(recordings)) for value in drawn]
        leaves = [torch.stack([p.detach() for p in column]) for column in _columns(parameters)]
        self.parameters = [leaf.requires_grad_(True) for leaf in leaves]
        sources = [self._one(column) for column in _columns([r.sources for r in recordings])]
        constants = [_same(column) for column in _columns([r.constants for r in recordings])]
        batch: list[Any] = [
            column[0] if shared else torch.stack(list(column)) for column in _columns(batches)
        ]
        given = [leaves, batch, self._buffers, [s for s, _ in sources], [c for c, _ in constants]]
        dims: list[int | None] = [0] * len(leaves)
        dims += [None if shared else 0] * len(batch)
        dims += [0] * len(drawn)
        dims += [dim for _, dim in (*sources, *constants)]
        pure = _functional(first.module, self._draws, [*example, *drawn])
        module = _mapped(pure, [tensor for part in given for tensor in part], dims)
        self.recording = Recording(
            module=module,
            sources=given[3],
            constants=given[4],
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
        """New random numbers of each, with R leading."""
        for node, buffer in zip(self._draws, self._buffers, strict=True):
            target: Any = node.target
            for place, generator in enumerate(self._generators):
                target(buffer[place], *node.args[1:], **node.kwargs, generator=generator)
        return self._buffers

    def draw_like(self) -> list[Tensor]:
        """Tensors like those that `draw` returns; nothing is drawn."""
        return self._buffers

    def _one(self, column: Sequence[Tensor]) -> tuple[Tensor, int | None]:
        if id(column[0]) in self._shared_sources:
            return column[0], None
        return _same(column)


def _columns(rows: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, ...]]:
    return list(zip(*rows, strict=True))


def _same(column: Sequence[Tensor]) -> tuple[Tensor, int | None]:
    """One tensor for all, if they hold the same; else stacked."""
    values = [tensor.detach() for tensor in column]
    if all(torch.equal(values[0], value) for value in values[1:]):
        return values[0], None
    return torch.stack(values), 0


def _refuse_different(recordings: Sequence[Recording]) -> None:
    first = recordings[0]
    for other in recordings:
        if other.mutated or other.rebinds:
            raise CannotCaptureError("it keeps state of its own from step to step")
        theirs, ours = other.module.graph.nodes, first.module.graph.nodes
        if len(theirs) != len(ours) or any(
            a.target != b.target for a, b in zip(theirs, ours, strict=True) if a.op != "placeholder"
        ):
            raise CannotCaptureError("the starts do not take the same operations")


def _is_random(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in tags


def _draws(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that draw: each fills a tensor that was made for it."""
    found = []
    for node in graph.nodes:
        if not _is_random(node):
            continue
        name = str(node.target).split(".")[1]
        made = node.args[0] if node.args else None
        fresh = isinstance(made, fx.Node) and str(made.target).split(".")[1:2]
        others = [a for a in (*node.args[1:], *node.kwargs.values()) if isinstance(a, fx.Node)]
        if name not in _FILLS or not fresh or fresh[0] not in _MAKES or others:
            raise CannotCaptureError(f"it draws by {name}, with parameters of its own")
        found.append(node)
    return found


class _RandomOperation(fx.Interpreter):
    """Runs a graph with given random numbers, and lists of tensors one by one."""

    def __init__(self, module: fx.GraphModule, draws: Sequence[fx.Node], values: Any) -> None:
        super().__init__(module)
        self._given = dict(zip(draws, values, strict=True))

    def run_node(self, node: fx.Node) -> Any:
        if node in self._given:
            value = self._given[node]
            self.env[node.args[0]] = value  # type: ignore[index]  # what was filled
            return value
        name = str(node.target)
        if name.startswith("aten._foreach_"):
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            one = {"mul": torch.mul, "norm": torch.linalg.vector_norm}.get(name[14:].split(".")[0])
            if one is None:
                raise CannotCaptureError(f"{name} is not known to go abreast")
            return [one(tensor, *args[1:], **kwargs) for tensor in args[0]]
        return super().run_node(node)


class _Filled(fx.Interpreter):
    """Runs a graph; `fill`, which has no rule for tensors abreast, by `full_like`."""

    def run_node(self, node: fx.Node) -> Any:
        if node.target is _aten.fill.Scalar:
            (tensor, value), _ = self.fetch_args_kwargs_from_env(node)
            return torch.full_like(tensor, value)
        return super().run_node(node)


def _values(
    module: fx.GraphModule, draws: Sequence[fx.Node], example: Sequence[Tensor]
) -> list[Tensor]:
    """What the nodes drew in one run; the generator is put back."""
    found: dict[fx.Node, Tensor] = {}

    class Watching(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if node in draws:
                found[node] = value.clone(memory_format=torch.contiguous_format)
            return value

    with torch.no_grad(), preserve_rng():
        Watching(module).run(*example)
    return [found[node] for node in draws]


def _functional(
    module: fx.GraphModule, draws: Sequence[fx.Node], example: Sequence[Tensor]
) -> fx.GraphModule:
    """The graph with its draws as inputs behind the batch, and nothing changed in place.

    `example` has what the graph takes, and then the draws.
    """
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    place = len([node for node in inputs if node.name.startswith("given_")])
    count = len(example) - len(draws)
    order = [*range(place), *range(count, len(example)), *range(place, count)]

    def run(*flat: Tensor) -> Any:
        drawn = flat[place : place + len(draws)]
        return _RandomOperation(module, draws, drawn).run(
            *flat[:place], *flat[place + len(draws) :]
        )

    with torch.no_grad():
        return make_fx(functionalize(run), tracing_mode="real")(
            *[example[i].detach() for i in order]
        )


def _mapped(
    pure: fx.GraphModule, given: Sequence[Tensor], dims: Sequence[int | None]
) -> fx.GraphModule:
    """`vmap` of a functional graph, as a graph."""

    def one(*flat: Tensor) -> Any:
        return _Filled(pure).run(*flat)

    with torch.no_grad():
        graph = make_fx(vmap(one, in_dims=tuple(dims)), tracing_mode="real")(
            *[tensor.detach() for tensor in given]
        )
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


class VectorizedStep:
    """A whole step of `abreast`, with one optimiser for the stacked parameters.

    Args:
        abreast: the recording.
        optimizer: of the stacked parameters, with a flat rule.
        flat: where they lie, the same for all kinds of batches.
        compiled: have the step compiled.

    Raises:
        CannotCaptureError: the optimiser has no flat rule.
    """

    def __init__(
        self,
        abreast: VectorizedRecording,
        batch: list[Tensor],
        optimizer: torch.optim.Optimizer,
        flat: FlatOptimizer,
        compiled: bool,
    ) -> None:
        self.abreast, self._optimizer, self._flat = abreast, optimizer, flat
        self._active = abreast.recording.trained(abreast.parameters)
        groups = self._plan()
        self._compiled: CompiledStep | None = None
        if compiled:
            given = [*batch, *abreast.draw_like()]
            recording, leaves = abreast.recording, abreast.parameters
            self._compiled = CompiledStep(recording, leaves, groups, given, guarded=True)
            with single_thread_if(recording.small):
                self._compiled.compile(given, same_random=True)

    def __call__(self, batch: list[Tensor]) -> Any:
        """Take the step; what one program returns, each tensor (R,). None: it is not finite."""
        with single_thread_if(self.abreast.recording.small):
            return self._take(batch)

    def _take(self, batch: list[Tensor]) -> Any:
        recording = self.abreast.recording
        given = [*batch, *self.abreast.draw()]
        if self._compiled is not None:
            losses = self._compiled(given)
            if not finite(losses):
                self._compiled.undo_count()
                return None
            return losses
        leaves = self.abreast.parameters
        with torch.no_grad():
            out = recording.module(*leaves, *given, *recording.sources, *recording.constants)
        losses = recording.losses(out)
        if not finite(losses):
            return None
        for leaf, gradient in zip(self._active, out[recording.num_losses :], strict=True):
            leaf.grad = gradient
        self._flat.step(self._owned())
        for leaf in self._active:
            leaf.grad = None
        return losses

    def _plan(self) -> list[FlatGroup]:
        groups = self._flat.plan(self._owned())
        if groups is None:
            raise CannotCaptureError("the optimiser has no flat rule")
        return groups

    def _owned(self) -> list[Any]:
        owned = TorchOptimizerAdapter(self._optimizer).parameter_slots(self._active)
        assert owned is not None
        return list(owned)
