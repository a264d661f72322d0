"""A graph in which nothing is changed in place, so that its operations may be moved about."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ppl_lvm.compiler.graph.build import item

# A view may ask for a layout that a tensor made in another way (stacked, repeated) does not have.
_RESHAPED: dict[Any, Any] = dict.fromkeys(
    (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default),
    torch.ops.aten.reshape.default,
)
_UNMOVABLE = (torch.ops.aten.as_strided.default, torch.ops.aten.set_.source_Tensor)


def functional(graph: fx.Graph) -> fx.Graph | None:
    """A copy of the graph with `x.op_(…)` as `x' = op(x, …)`; only draws still fill new tensors.

    None if a change could be seen through another name: of an input, or of a view.
    """
    roots: dict[fx.Node, fx.Node] = {}  # what an operation in place returns is what it changes
    names: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.target in _UNMOVABLE or (_changes(node) and not _changes_first(node)):
            return None
        root = roots[node.args[0]] if _changes(node) else node
        roots[node] = root
        names[root].append(node)
    if any(len(known) > 1 and not _alone(root, known) for root, known in names.items()):
        return None
    copy = fx.Graph()
    now: dict[fx.Node, fx.Node] = {}  # a tensor -> its present value
    for node in graph.nodes:
        new = copy.node_copy(node, lambda n: now[roots[n]])
        if _changes(node):
            new.target = _without_change(node)
        now[roots[node]] = new
    return copy


def called(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operation returns on tensors made in another way; several tensors as a tuple."""
    value = _RESHAPED.get(target, target)(*args, **kwargs)
    if isinstance(value, tuple | list):
        return tuple(v for v in pytree.tree_leaves(value) if isinstance(v, Tensor))
    return value


def is_view(node: fx.Node) -> bool:
    """Whether an operation's result shares memory with its argument."""
    if node.target is item:
        return is_view(node.args[0])  # type: ignore[arg-type]
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable:
        return False
    return any(r.alias_info is not None for r in schema.returns)


def _changes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _changes_first(node: fx.Node) -> bool:
    """Whether the first argument, and nothing else, is changed, by an operation that has a twin."""
    schema: Any = node.target._schema  # type: ignore[union-attr]
    written = [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if len(written) != 1 or written[0].name != schema.arguments[0].name:
        return False
    return isinstance(node.args[0], fx.Node) and _without_change(node) is not None


def _alone(root: fx.Node, known: list[fx.Node]) -> bool:
    """Whether what is changed was made within the graph and is seen by no other name."""
    if root.op != "call_function" or is_view(root):
        return False
    return not any(is_view(user) for node in known for user in node.users)


def _without_change(node: fx.Node) -> Any:
    op: Any = node.target
    name = op._schema.name.removeprefix("aten::")
    if torch.Tag.nondeterministic_seeded in op.tags and is_empty(node.args[0]):
        return op  # it fills what nobody has read, and what it returns is what is read
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    return getattr(packet, op._overloadname, None) if packet is not None else None


def is_empty(node: Any) -> bool:
    """Whether an operation makes a tensor for others to fill."""
    return getattr(node.target, "_opname", "").startswith(("empty", "new_empty"))
