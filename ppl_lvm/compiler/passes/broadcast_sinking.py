"""Sink broadcasts: compute f(c) once and expand the result.

Pyro expands a distribution over its plate before it evaluates its parameters. Then log σ, or a
table of clamped probabilities and its logarithm, is computed for each of B rows, and its gradient
is a product for each row, summed afterwards. Where c is broadcast along the rows,

    f(expand(c)) = expand(f(c)),    Σ_rows g · expand(c) = (Σ_rows g) · c,

and likewise for division, masks and several such factors. Sums are taken in another order: results
agree to rounding.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Size, Tensor, fx

from ppl_lvm.compiler.graph.build import item
from ppl_lvm.compiler.graph.functionalize import evaluate, is_empty
from ppl_lvm.compiler.graph.schedule import is_random
from ppl_lvm.compiler.passes.base import Pass, Stage

_aten = torch.ops.aten


@dataclass(frozen=True)
class BroadcastSinking(Pass):
    """Evaluate operations on the tensor before it is broadcast."""

    name: ClassVar[str] = "broadcast sinking"
    stage: ClassVar[Stage] = "compile"

    def rewrite(
        self, graph: fx.Graph, constants: Sequence[Tensor]
    ) -> Callable[..., tuple[Tensor, ...]]:
        zeros = [constant.dim() == 0 and not constant for constant in constants]
        return lambda *inputs: BroadcastSinker(graph, inputs, zeros).outputs()


@dataclass(frozen=True)
class Broadcasted:
    """A tensor of `shape`: `once`, of as many dimensions, expanded."""

    once: Tensor
    shape: Size


@dataclass(frozen=True)
class ScaledTensor:
    """`base` times factors, each of which is constant along some dimension.

    Attributes:
        factors: each as a function of a tensor, and its shape, aligned at the end.
    """

    base: Tensor
    factors: tuple[tuple[Callable[[Tensor], Tensor], Size], ...]

    @property
    def shape(self) -> Size:
        return self.base.shape

    def times(self, tensor: Tensor) -> Tensor:
        """A tensor times all factors."""
        for factor, _ in self.factors:
            tensor = factor(tensor)
        return tensor

    def constant(self, dim: int) -> bool:
        """True if no factor changes along a dimension, counted from the end."""
        return all(len(shape) < -dim or shape[dim] == 1 for _, shape in self.factors)


class BroadcastSinker:
    """Evaluates a functional graph node by node, with broadcast values unexpanded.

    Args:
        graph: functional; its last inputs are constants.
        inputs: of the graph.
        zeros: for each constant, whether it is the number 0.
    """

    def __init__(self, graph: fx.Graph, inputs: Sequence[Tensor], zeros: Sequence[bool]) -> None:
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self._values: dict[fx.Node, Any] = dict(zip(placeholders, inputs, strict=True))
        self._expanded: dict[fx.Node, Tensor] = {}
        self._recorded: dict[fx.Node, Any] = {}
        self._touched: set[fx.Node] = set()  # computed from a broadcast value
        self._place = {node: place for place, node in enumerate(graph.nodes)}
        last = placeholders[len(placeholders) - len(zeros) :]
        self._zeros = {node for node, zero in zip(last, zeros, strict=True) if zero}
        for node in graph.nodes:
            if node.op == "call_function":
                value = self._values[node] = self._value(node)
                inputs = [] if _depends_on_layout(node) else node.all_input_nodes
                if isinstance(value, Broadcasted | ScaledTensor) or self._touched.intersection(
                    inputs
                ):
                    self._touched.add(node)
                if node.target is _aten.scalar_tensor.default and node.args[0] == 0:
                    self._zeros.add(node)
        (self._out,) = next(node for node in graph.nodes if node.op == "output").args

    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs of the graph."""
        return tuple(self._expand_value(node) for node in self._out)

    def _value(self, node: Any) -> Any:
        if node.target is item:
            return self._values[node.args[0]][node.args[1]]
        if _depends_on_layout(node):
            return self._evaluate(node, self._as_recorded)
        rule = _RULES.get(node.target)
        value = None if rule is None else rule(self, node)
        if value is None:
            value = self._scaled(node)
        if value is None:
            value = self._pointwise(node)
        return self._evaluate(node, self._expand_value) if value is None else value

    def _expand_value(self, node: fx.Node) -> Any:
        """The expanded tensor, for an operation without a rule."""
        value = self._values[node]
        if not isinstance(value, Broadcasted | ScaledTensor):
            return value
        if node not in self._expanded:
            if isinstance(value, Broadcasted):
                self._expanded[node] = value.once.expand(value.shape)
            else:
                self._expanded[node] = value.times(value.base)
        return self._expanded[node]

    def _as_recorded(self, node: fx.Node) -> Any:
        """The tensor with the recording's layout, for a draw or a new tensor that copies it.

        Random numbers are drawn in the order of the memory.
        """
        needed: set[fx.Node] = set()
        pending = [node]
        while pending:
            source = pending.pop()
            if source in self._touched and source not in needed and source not in self._recorded:
                needed.add(source)
                pending += source.all_input_nodes
        for source in sorted(needed, key=self._place.__getitem__):
            self._recorded[source] = self._evaluate(source, self._recorded_value)
        return self._recorded_value(node)

    def _recorded_value(self, node: fx.Node) -> Any:
        return self._recorded[node] if node in self._touched else self._values[node]

    def _evaluate(self, node: Any, argument: Callable[[fx.Node], Any]) -> Any:
        """The operation itself."""
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), argument)
        return evaluate(node.target, args, kwargs)

    # Pointwise operations

    def _pointwise(self, node: Any) -> Any:
        """A pointwise operation with a broadcast argument; None if it is something else."""
        values = [self._values[n] for n in node.all_input_nodes]
        plain = torch.Tag.pointwise in getattr(node.target, "tags", ()) and not is_random(node)
        if not plain or not any(isinstance(value, Broadcasted) for value in values):
            return None

        def once(source: fx.Node) -> Any:
            value = self._values[source]
            return value.once if isinstance(value, Broadcasted) else self._expand_value(source)

        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), once)
        result = node.target(*args, **kwargs)
        shape = torch.broadcast_shapes(*(value.shape for value in values))
        return _broadcast(result, shape) if isinstance(result, Tensor) else None

    def _scaled(self, node: Any) -> ScaledTensor | None:
        """A full tensor times a broadcast one; None if it is something else."""
        if node.kwargs or node.target not in _FACTORS:
            return None
        product = _FACTORS[node.target](self, node)
        if product is None:
            return None
        value, factor, by = product
        base, before = (
            (value.base, value.factors) if isinstance(value, ScaledTensor) else (value, ())
        )
        if by is not None:
            types = {base.dtype, by.once.dtype} - {torch.bool}
            if len(types) > 1 or torch.broadcast_shapes(base.shape, by.shape) != base.shape:
                return None
        return ScaledTensor(base, (*before, (factor, Size([]) if by is None else by.once.shape)))

    def _product(self, node: Any) -> Any:
        """The full tensor, its factor as a function, and the broadcast factor (None: a number)."""
        op: Any = node.target
        a, b = [self._values[x] if isinstance(x, fx.Node) else x for x in node.args]
        if isinstance(b, int | float):
            return (a, lambda x: op(x, b), None) if isinstance(a, ScaledTensor) else None
        if isinstance(b, Broadcasted) and isinstance(a, Tensor | ScaledTensor):
            return a, lambda x: op(x, b.once), b
        if isinstance(a, Broadcasted) and isinstance(b, Tensor | ScaledTensor) and op is not _DIV:
            return b, lambda x: op(a.once, x), a
        return None

    def _mask(self, node: Any) -> Any:
        mask, value, other = [self._values[x] for x in node.args]
        zero = node.args[2] in self._zeros and isinstance(other, Tensor)
        if (
            not isinstance(mask, Broadcasted)
            or not isinstance(value, Tensor | ScaledTensor)
            or not zero
        ):
            return None
        return value, lambda x: torch.where(mask.once, x, other), mask

    def _negative(self, node: Any) -> Any:
        value = self._values[node.args[0]]
        return (value, torch.neg, None) if isinstance(value, ScaledTensor) else None

    # Sums

    def _sum(self, node: Any) -> Any:
        """A sum of a broadcast tensor, or of a tensor with a broadcast factor."""
        value = self._values[node.args[0]]
        if node.kwargs or not isinstance(value, Broadcasted | ScaledTensor):
            return None
        all_dims = list(range(len(value.shape)))
        listed: Any = node.args[1] if len(node.args) > 1 else None
        dims = [d % len(all_dims) for d in listed] if listed else all_dims
        keep = len(node.args) > 2 and bool(node.args[2])
        broadcast = isinstance(value, Broadcasted)
        total = self._sum_broadcast(value, dims) if broadcast else self._sum_scaled(value, dims)
        if total is None or keep:
            return total
        rest = [d for d in all_dims if d not in dims]
        if isinstance(total, Broadcasted):
            shape = Size([total.shape[d] for d in rest])
            return Broadcasted(total.once.squeeze(dims), shape)
        return total.squeeze(dims)

    def _sum_broadcast(self, value: Any, dims: list[int]) -> Tensor | Broadcasted:
        times = math.prod(value.shape[d] for d in dims if value.once.shape[d] == 1)
        total = value.once.sum(dims, keepdim=True) * times
        shape = [1 if d in dims else n for d, n in enumerate(value.shape)]
        return _broadcast(total, Size(shape))

    def _sum_scaled(self, value: Any, dims: list[int]) -> Tensor | Broadcasted | None:
        free = [d for d in dims if value.constant(d - len(value.shape))]
        if not free:
            return None
        total: Tensor = value.times(value.base.sum(free, keepdim=True))
        rest = [d for d in dims if d not in free]
        return total.sum(rest, keepdim=True) if rest else total

    # Views

    def _expand(self, node: Any) -> Any:
        source, sizes = node.args[:2]
        value = self._values[source]
        once = value.once if isinstance(value, Broadcasted) else self._expand_value(source)
        new = len(sizes) - once.dim()
        old = [1] * new + list(value.shape)
        shape = [o if n == -1 else n for n, o in zip(sizes, old, strict=True)]
        for _ in range(new):
            once = once.unsqueeze(0)
        return _broadcast(once, Size(shape))

    def _view(self, node: Any) -> Any:
        """A view of a broadcast tensor that only inserts or removes dimensions of size 1."""
        value = self._values[node.args[0]]
        if not isinstance(value, Broadcasted):
            return None
        sizes: list[int] = list(node.args[1])
        if -1 in sizes:
            known = math.prod(n for n in sizes if n != -1)
            sizes[sizes.index(-1)] = math.prod(value.shape) // max(known, 1)
        old = [(n, o) for n, o in zip(value.shape, value.once.shape, strict=True) if n != 1]
        if [n for n, _ in old] != [n for n in sizes if n != 1]:
            return None
        sides = iter(o for _, o in old)
        once = value.once.reshape([1 if n == 1 else next(sides) for n in sizes])
        return Broadcasted(once, Size(sizes))

    def _permute(self, node: Any) -> Any:
        """The operation on the unexpanded tensor and on the order of its dimensions."""
        source, *rest = node.args
        value = self._values[source]
        if not isinstance(value, Broadcasted):
            return None
        once: Tensor = node.target(value.once, *rest)
        places = list(range(len(value.shape)))
        if node.target is _aten.permute.default:
            places = [d % len(places) for d in rest[0]]
        elif node.target is _aten.transpose.int:
            i, j = rest
            places[i], places[j] = places[j], places[i]
        shape = [value.shape[place] for place in places]
        if node.target is _aten.unsqueeze.default:
            shape.insert(rest[0] % (len(shape) + 1), 1)
        return Broadcasted(once, Size(shape))

    def _squeeze(self, node: Any) -> Any:
        value, dim = self._values[node.args[0]], node.args[1]
        if not isinstance(value, Broadcasted):
            return None
        if value.shape[dim] != 1:
            return value
        shape = list(value.shape)
        del shape[dim]
        return Broadcasted(value.once.squeeze(dim), Size(shape))


def _depends_on_layout(node: fx.Node) -> bool:
    """True if an operation draws, or creates a tensor to fill, in the layout of its arguments."""
    return is_random(node) or is_empty(node) or "_like" in str(node.target)


def _broadcast(once: Tensor, shape: Size) -> Tensor | Broadcasted:
    return once if once.shape == shape else Broadcasted(once, shape)


_DIV = _aten.div.Tensor
_FACTORS: dict[Any, Callable[[BroadcastSinker, Any], Any]] = {
    **dict.fromkeys(
        (_aten.mul.Tensor, _DIV, _aten.mul.Scalar, _aten.div.Scalar), BroadcastSinker._product
    ),
    _aten.where.self: BroadcastSinker._mask,
    _aten.neg.default: BroadcastSinker._negative,
}
_RULES: dict[Any, Callable[[BroadcastSinker, Any], Any]] = {
    **dict.fromkeys((_aten.sum.dim_IntList, _aten.sum.default), BroadcastSinker._sum),
    _aten.expand.default: BroadcastSinker._expand,
    **dict.fromkeys(
        (_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default),
        BroadcastSinker._view,
    ),
    **dict.fromkeys(
        (
            _aten.transpose.int,
            _aten.permute.default,
            _aten.unsqueeze.default,
            _aten.detach.default,
            _aten.alias.default,
        ),
        BroadcastSinker._permute,
    ),
    _aten.squeeze.dim: BroadcastSinker._squeeze,
}
