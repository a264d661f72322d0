"""Level-by-level evaluation of a functional graph with isomorphic operations batched."""

import itertools
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ppl_lvm.compiler.graph.build import item
from ppl_lvm.compiler.graph.functionalize import evaluate, is_empty, is_view
from ppl_lvm.compiler.graph.iota import index_by_iota, iota_nodes, put_by_iota
from ppl_lvm.compiler.graph.schedule import MIN_GROUP, is_random, levels, long_sums

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Slice:
    """One of the tensors stacked in `store` (n, ...)."""

    store: int
    place: int


class LevelBatcher:
    """Evaluates a functional graph level by level, isomorphic operations together.

    Args:
        graph: functional; its last inputs are constants.
        inputs: of the graph.
        equal: for each constant the place of the first constant that is equal to it.
    """

    def __init__(self, graph: fx.Graph, inputs: Sequence[Tensor], equal: Sequence[int]) -> None:
        self._values: dict[fx.Node, Any] = {}  # a tensor, a slice of a store, or a tuple of those
        self._stores: list[Tensor] = []
        self._gathered: dict[Hashable, Tensor] = {}
        self._slices: dict[tuple[fx.Node, int], int] = {}
        self._sums = long_sums(graph)
        self._nodes_by_key: dict[Hashable, fx.Node] = {}
        self._representatives: dict[fx.Node, fx.Node] = {}  # node -> the first equal to it
        inner = {n for _, parts in self._sums.values() for n in parts}
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self._values.update(zip(placeholders, inputs, strict=True))
        constants = placeholders[len(placeholders) - len(equal) :]
        for node, first in zip(constants, equal, strict=True):
            if constants[first] is not node:
                self._representatives[node] = constants[first]
        self._iota = iota_nodes(graph)
        for level in levels(graph, self._sums, inner):
            self._run(level)
        (self._out,) = next(n for n in graph.nodes if n.op == "output").args

    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs of the graph."""
        return tuple(self._tensor(node) for node in self._out)

    def _run(self, level: list[fx.Node]) -> None:
        isomorphic: dict[Hashable, list[fx.Node]] = defaultdict(list)
        for node in level:
            if self._alias(node) or self._is_duplicate(node):
                continue
            if node in self._sums:
                self._values[node] = self._sum(self._sums[node][0])
            elif is_random(node) or (key := self._key(node)) is None:
                self._values[node] = self._single(node)
            else:
                isomorphic[key].append(node)
        for nodes in isomorphic.values():
            if len(nodes) < MIN_GROUP or not self._batch(nodes):
                for node in nodes:
                    self._values[node] = self._single(node)

    # Single operations

    def _is_duplicate(self, node: fx.Node) -> bool:
        """True if an equal operation was evaluated before; its value is then used."""
        if is_random(node) or is_empty(node) or node in self._sums:
            return False
        key = self._iota_key(node)
        if key is None:
            leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
            named = [
                ("node", self._first(a)) if isinstance(a, fx.Node) else _plain(a) for a in leaves
            ]
            key = (node.target, tuple(named), spec)
        first = self._nodes_by_key.setdefault(key, node)
        if first is node:
            return False
        self._representatives[node] = first
        return True

    def _iota_key(self, node: fx.Node) -> Hashable | None:
        """Key of an iota index: its source and shape, whatever views lie between."""
        if node not in self._iota or not is_view(node):
            return None
        source: Any = node.args[0]
        shape = node.target(self._tensor(source), *node.args[1:]).shape  # type: ignore[operator]
        while source in self._iota and is_view(source):
            source = source.args[0]
        return ("iota", self._first(source), shape)

    def _first(self, node: fx.Node) -> fx.Node:
        return self._representatives.get(node, node)

    def _alias(self, node: fx.Node) -> bool:
        """True if a node is a part of a computed value: an output of several, a slice."""
        if node.target not in (item, _aten.unbind.int, _aten.select.int):
            return False
        source = self._first(node.args[0])  # type: ignore[arg-type]
        if node.target is item:
            self._values[node] = self._values[source][node.args[1]]
            return True
        value = self._values[source]
        if node.target is _aten.unbind.int and isinstance(value, Tensor):
            dim = node.args[1] if len(node.args) > 1 else 0
            store = self._slice(source, value, int(dim))  # type: ignore[arg-type]
            count = len(self._stores[store])
            self._values[node] = tuple(_Slice(store, place) for place in range(count))
            return True
        if node.target is _aten.select.int and isinstance(value, Tensor):
            dim, place = node.args[1:]
            store = self._slice(source, value, int(dim))  # type: ignore[arg-type]
            place = int(place)  # type: ignore[arg-type]
            self._values[node] = _Slice(store, place % len(self._stores[store]))
            return True
        return False

    def _slice(self, source: fx.Node, value: Tensor, dim: int) -> int:
        key = (source, dim % value.dim())
        if key not in self._slices:
            self._slices[key] = self._store(value.movedim(dim, 0))
        return self._slices[key]

    def _store(self, tensor: Tensor) -> int:
        self._stores.append(tensor)
        return len(self._stores) - 1

    def _single(self, node: fx.Node) -> Any:
        if (stacked := self._stacked(node)) is not None:
            return stacked
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self._tensor)
        return evaluate(self._target(node), args, kwargs)

    def _target(self, node: fx.Node) -> Any:
        """The function to evaluate in place of an operation."""
        if node.target in (_aten.index.Tensor, _aten.index_put.default):
            indices: Any = node.args[1]
            if len(indices) == 1 and self._first(indices[0]) in self._iota:
                return index_by_iota if node.target is _aten.index.Tensor else put_by_iota
        return node.target

    def _stacked(self, node: fx.Node) -> Tensor | None:
        """A `stack` of slices that are stacked already."""
        if node.target is not _aten.stack.default:
            return None
        parts: Any = node.args[0]
        dim: Any = node.args[1] if len(node.args) > 1 else 0
        if len(parts) < MIN_GROUP:
            return None
        stacked = self._gather([self._value(n) for n in parts])
        return stacked.movedim(0, dim if dim >= 0 else dim + stacked.dim())

    def _tensor(self, node: fx.Node) -> Tensor:
        value = self._value(node)
        if isinstance(value, _Slice):
            key = ("part", value)
            if key not in self._gathered:
                self._gathered[key] = self._stores[value.store][value.place]
            return self._gathered[key]
        tensor: Tensor = value
        return tensor

    def _value(self, node: fx.Node) -> Any:
        return self._values[self._first(node)]

    def _kind(self, node: fx.Node) -> tuple[Any, ...] | None:
        """Store, shape, type and device; None for several tensors or an unknown shape."""
        value = self._value(node)
        if isinstance(value, tuple):
            return None
        store = value.store if isinstance(value, _Slice) else None
        tensor = value if store is None else self._stores[store]
        shape = tensor.shape if store is None else tensor.shape[1:]
        if any(isinstance(size, torch.SymInt) for size in shape):  # a mask decides it
            return None
        return (store, shape, tensor.dtype, tensor.device)

    # Batches

    def _key(self, node: fx.Node) -> Hashable | None:
        """A key that isomorphic operations share; None for one that is evaluated alone."""
        if node.op != "call_function" or not node.all_input_nodes:
            return None
        leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
        kinds = [self._kind(a) if isinstance(a, fx.Node) else _plain(a) for a in leaves]
        if any(kind is None for kind in kinds):
            return None
        return (node.target, tuple(kinds), spec)

    def _batch(self, nodes: list[fx.Node]) -> bool:
        """Evaluate isomorphic operations together; False where stacking does not pay."""
        nodes = sorted(nodes, key=self._place)  # in the order of their arguments
        flat = [pytree.tree_leaves((n.args, n.kwargs)) for n in nodes]
        _, spec = pytree.tree_flatten((nodes[0].args, nodes[0].kwargs))
        if is_view(nodes[0]) and not isinstance(self._value(flat[0][0]), _Slice):
            return False  # a view copies nothing, and stacking would
        varying: list[Tensor] = []
        places: list[tuple[int, int | None]] = []
        template = list(flat[0])
        for place, column in enumerate(zip(*flat, strict=True)):
            if not isinstance(column[0], fx.Node):
                continue
            values = [self._value(node) for node in column]
            shared = all(self._first(node) is self._first(column[0]) for node in column)
            varying.append(self._tensor(column[0]) if shared else self._gather(values))
            places.append((place, None if shared else 0))
        target = self._target(nodes[0])

        def one(*tensors: Tensor) -> Any:
            leaves = list(template)
            for (place, _), tensor in zip(places, tensors, strict=True):
                leaves[place] = tensor
            args, kwargs = pytree.tree_unflatten(leaves, spec)
            return evaluate(target, args, kwargs)

        value = torch.vmap(one, in_dims=tuple(dim for _, dim in places))(*varying)
        if isinstance(value, Tensor):
            store = self._store(value)
            for place, node in enumerate(nodes):
                self._values[node] = _Slice(store, place)
            return True
        stores = [self._store(v) for v in value]
        for place, node in enumerate(nodes):
            self._values[node] = tuple(_Slice(store, place) for store in stores)
        return True

    def _place(self, node: fx.Node) -> int:
        values = [self._value(a) for a in node.all_input_nodes]
        return next((v.place for v in values if isinstance(v, _Slice)), 0)

    def _in_one_store(self, values: Sequence[Any]) -> bool:
        return all(isinstance(v, _Slice) and v.store == values[0].store for v in values)

    def _gather(self, values: Sequence[Any]) -> Tensor:
        """Tensors of one shape along a new first dimension."""
        key = tuple(v if isinstance(v, _Slice) else id(v) for v in values)
        if key not in self._gathered:
            if self._in_one_store(values):
                stacked = _take(self._stores[values[0].store], [v.place for v in values])
            else:
                stacked = self._collect(values)
            self._gathered[key] = stacked
        return self._gathered[key]

    def _collect(self, values: Sequence[Any]) -> Tensor:
        """Stack slices of several stores and single tensors: each once, then in order."""
        singles: list[Tensor] = []
        offsets: dict[Hashable, int] = {}
        count = 0
        used: dict[int, list[int]] = defaultdict(list)
        for value in values:
            if isinstance(value, _Slice):
                if value.place not in used[value.store]:
                    used[value.store].append(value.place)
            elif id(value) not in offsets:
                offsets[id(value)] = count
                singles.append(value)
                count += 1
        pieces = [torch.stack(singles)] if singles else []
        for store, places in used.items():
            pieces.append(_take(self._stores[store], places))
            for position, place in enumerate(places):
                offsets[_Slice(store, place)] = count + position
            count += len(places)
        order = [offsets[v if isinstance(v, _Slice) else id(v)] for v in values]
        return _take(torch.cat(pieces) if len(pieces) > 1 else pieces[0], order)

    def _sum(self, parts: Sequence[fx.Node]) -> Tensor:
        """The sum of many tensors: slices of one store are summed over their dimension."""
        stores: dict[int, list[int]] = defaultdict(list)
        total: Any = None
        for node in parts:
            value = self._value(node)
            if isinstance(value, _Slice):
                stores[value.store].append(value.place)
            else:
                total = value if total is None else total + value
        for store, places in stores.items():
            piece = _take(self._stores[store], sorted(places)).sum(0)  # in any order
            total = piece if total is None else total + piece
        result: Tensor = total
        return result


def _take(store: Tensor, places: list[int]) -> Tensor:
    """`store[places]`, as a view if the places are evenly spaced."""
    if len(places) == 1:
        return store[places[0] : places[0] + 1]
    steps = {b - a for a, b in itertools.pairwise(places)}
    if len(steps) == 1 and (step := next(iter(steps))) > 0:
        if step == 1 and len(places) == len(store):
            return store
        return store[places[0] : places[-1] + 1 : step]
    return (
        torch.stack([store[place] for place in places]) if len(places) < 4 else _pick(store, places)
    )


def _pick(store: Tensor, places: list[int]) -> Tensor:
    index = torch.tensor(places, device=store.device)
    return store.index_select(0, index)


def _plain(leaf: Any) -> Hashable:
    """Key of an argument that is no tensor, so that 1, 1.0 and True differ."""
    return (type(leaf), leaf if isinstance(leaf, Hashable) else repr(leaf))
