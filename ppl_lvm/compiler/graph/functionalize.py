"""Functional copies of graphs, without in-place operations."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ppl_lvm.compiler.graph.build import item

# A view may require a layout that a tensor created otherwise (stacked, broadcast) does not have.
_RESHAPED: dict[Any, Any] = dict.fromkeys(
    (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default),
    torch.ops.aten.reshape.default,
)
_UNMOVABLE = (torch.ops.aten.as_strided.default, torch.ops.aten.set_.source_Tensor)


def functional(graph: fx.Graph) -> fx.Graph | None:
    """A copy of the graph with `x.op_(…)` as `x' = op(x, …)`; only draws still fill new tensors.

    None if a change is visible through another name: of an input, or of a view.
    """
    roots: dict[fx.Node, fx.Node] = {}  # an in-place operation returns the tensor that it changes
    names: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.target in _UNMOVABLE or (_mutates(node) and not _mutates_first(node)):
            return None
        root = roots[node.args[0]] if _mutates(node) else node
        roots[node] = root
        names[root].append(node)
    if any(len(nodes) > 1 and not _is_unaliased(root, nodes) for root, nodes in names.items()):
        return None
    copy = fx.Graph()
    current: dict[fx.Node, fx.Node] = {}  # a tensor -> its present value
    for node in graph.nodes:
        new = copy.node_copy(node, lambda n: current[roots[n]])
        if _mutates(node):
            new.target = _functional_target(node)
        current[roots[node]] = new
    return copy


def evaluate(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The value of an operation on tensors of any layout; several tensors as a tuple."""
    value = _RESHAPED.get(target, target)(*args, **kwargs)
    if isinstance(value, tuple | list):
        return tuple(v for v in pytree.tree_leaves(value) if isinstance(v, Tensor))
    return value


def is_view(node: fx.Node) -> bool:
    """True if an operation's result shares memory with its argument."""
    if node.target is item:
        return is_view(node.args[0])  # type: ignore[arg-type]
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable:
        return False
    return any(r.alias_info is not None for r in schema.returns)


def is_empty(node: Any) -> bool:
    """True if an operation creates a tensor for others to fill."""
    return getattr(node.target, "_opname", "").startswith(("empty", "new_empty"))


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _mutates_first(node: fx.Node) -> bool:
    """True if an operation changes its first argument only and has a functional twin."""
    schema: Any = node.target._schema  # type: ignore[union-attr]
    written = [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if len(written) != 1 or written[0].name != schema.arguments[0].name:
        return False
    return isinstance(node.args[0], fx.Node) and _functional_target(node) is not None


def _is_unaliased(root: fx.Node, nodes: list[fx.Node]) -> bool:
    """True if a changed tensor was created within the graph and has no view."""
    if root.op != "call_function" or is_view(root):
        return False
    return not any(is_view(user) for node in nodes for user in node.users)


def _functional_target(node: fx.Node) -> Any:
    op: Any = node.target
    name = op._schema.name.removeprefix("aten::")
    if torch.Tag.nondeterministic_seeded in op.tags and is_empty(node.args[0]):
        return op  # it fills an empty tensor; readers use the tensor that it returns
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    return getattr(packet, op._overloadname, None) if packet is not None else None
