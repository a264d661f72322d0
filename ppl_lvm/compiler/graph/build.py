"""Build the graph of a tape.

    graph(*parameters, *batch, *sources, *constants) -> (*losses, *gradients)

The graph needs neither Pyro nor Python. It draws its random numbers where the step drew them, from
torch's global generator, so that it takes the same step under the same seed. It changes in place
the tensors that the program changes in place (the averages of batch normalization). It writes state
that the program binds anew each step into the tensor that the program holds.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ppl_lvm.compiler.graph.ir import Call, Recording, Ref, Tape
from ppl_lvm.core.errors import CannotCaptureError

_aten = torch.ops.aten
# Operations that return their argument where its shape stays.
_IDENTITY_IF_SAME_SHAPE = {
    _aten.alias.default,
    _aten.expand.default,
    _aten.slice.Tensor,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.view.default,
    _aten._unsafe_view.default,
}


def build(
    tape: Tape,
    rebound: dict[int, int],
    holders: dict[int, Tensor],
    *,
    constant_sources: bool = False,
) -> Recording:
    """Build the graph of a tape.

    Args:
        tape: of one step.
        rebound: state, from `tape_diff.state_pairs`: index of source -> index of result.
        holders: for each such source the tensor that the program holds now.
        constant_sources: sources that the step does not change never change.

    Raises:
        CannotCaptureError: a result in Python, or a shape, depends on the data.
    """
    changed = changed_sources(tape) | set(rebound)
    refuse_data_dependence(tape, changed, constant_sources=constant_sources)
    graph = fx.Graph()
    nodes: dict[int, fx.Node] = {
        index: graph.placeholder(f"given_{index}") for index in range(len(tape.input_dtypes))
    }
    for source in tape.sources:
        nodes[source.index] = graph.placeholder(f"source_{source.index}")
    for index in tape.constants:
        nodes[index] = graph.placeholder(f"constant_{index}")
    for index in tape.constants.keys() & _written(tape, tape.constants):
        nodes[index] = graph.call_function(_aten.clone.default, (nodes[index],))
    shapes: dict[int, Any] = {s.index: s.tensor.shape for s in tape.sources}
    shapes |= {index: constant.value.shape for index, constant in tape.constants.items()}
    for call in tape.calls:
        if _is_identity(call, shapes):
            nodes.setdefault(call.results[0], nodes[call.leaves[0].index])
        else:
            _add(call, graph, nodes)
        shapes |= {r: shape[0] for r, shape in zip(call.results, call.shapes, strict=False)}
    for place, result in rebound.items():
        graph.call_function(_aten.copy_.default, (nodes[place], nodes[result]))
    refs = [leaf for leaf in pytree.tree_leaves(tape.results) if isinstance(leaf, Ref)]
    losses = [nodes[ref.index] for ref in refs]
    gradients = [nodes[g] for g in tape.gradients if g is not None]
    graph.output((*losses, *gradients))
    _drop_dead(graph)
    return Recording(
        module=fx.GraphModule(torch.nn.Module(), graph),
        sources=[holders.get(s.index, s.tensor) for s in tape.sources],
        constants=[constant.value for constant in tape.constants.values()],
        active=[g is not None for g in tape.gradients],
        results=tape.results,
        num_losses=len(losses),
        mutated=[i for i, s in enumerate(tape.sources) if s.index in changed],
        rebinds=bool(rebound),
        draws=any(torch.Tag.nondeterministic_seeded in _tags(call.op) for call in tape.calls),
        tables=_tables(tape),
        hooked=tape.hooked,
    )


def _tags(op: Any) -> list[Any]:
    return op.tags if isinstance(op, torch._ops.OpOverload) else []


def _tables(tape: Tape) -> tuple[int, int]:
    """Bytes of the largest result, and of all results."""
    sizes = [
        math.prod(shape[0]) * shape[1].itemsize
        for call in tape.calls
        if isinstance(call.op, torch._ops.OpOverload) and not call.op.is_view
        for shape in call.shapes
        if len(shape) == 2
    ]
    return max(sizes, default=0), sum(sizes)


def _is_identity(call: Call, shapes: dict[int, Any]) -> bool:
    """True if an operation returns its first argument unchanged."""
    if call.op is _aten.detach.default:  # no gradients are taken here
        return True
    first = call.leaves[0] if call.leaves else None
    if not isinstance(first, Ref) or first.index not in shapes or not call.results:
        return False
    if call.op is _aten.permute.default:
        return list(call.leaves[1:]) == list(range(len(shapes[first.index])))
    return call.op in _IDENTITY_IF_SAME_SHAPE and call.shapes[0][0] == shapes[first.index]


def _add(call: Call, graph: fx.Graph, nodes: dict[int, fx.Node]) -> None:
    if call.reads and not call.results:
        return  # a number for Python, the same at every step
    if any(isinstance(leaf, torch.Generator) for leaf in call.leaves):
        raise CannotCaptureError("draws from a private torch.Generator", call.where)
    leaves = [nodes[leaf.index] if isinstance(leaf, Ref) else leaf for leaf in call.leaves]
    args, kwargs = call.arguments(leaves)
    op = call.op
    if op is _aten.native_batch_norm.default and args[3] is not None:
        op = _aten._native_batch_norm_legit.default  # the same; its schema names what it changes
    node = graph.call_function(op, args, kwargs)
    node.meta["where"] = call.where
    if call.op is torch.ops._c10d_functional.wait_tensor.default:  # the finished communication
        nodes[call.results[0]] = node
        return
    returns = call.op._schema.returns
    if len(returns) == 1 and not isinstance(returns[0].type, torch.ListType):
        for index in call.results:
            nodes.setdefault(index, node)  # in place: the earlier name stays
        return
    for place, index in enumerate(call.results):
        nodes.setdefault(index, graph.call_function(item, (node, place)))


def item(values: Any, place: int) -> Any:
    """The place-th tensor of an operation that returns several."""
    return [v for v in pytree.tree_leaves(values) if isinstance(v, Tensor)][place]


def _writes(call: Call) -> list[int]:
    """Indices of the tensors that an operation changes."""
    if not isinstance(call.op, torch._ops.OpOverload) or not call.op._schema.is_mutable:
        return []
    args, kwargs = call.arguments(call.leaves)
    written = []
    for place, argument in enumerate(call.op._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        written += [leaf.index for leaf in pytree.tree_leaves(value) if isinstance(leaf, Ref)]
    return written


def _equal(a: Tensor, b: Tensor) -> bool:
    """True if two tensors are equal, NaN included."""
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _views(call: Call) -> bool:
    schema = getattr(call.op, "_schema", None)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)


def changed_sources(tape: Tape) -> set[int]:
    """Sources that the step changes."""
    changed = {s.index for s in tape.sources if not _equal(s.before, s.tensor)}
    return changed | _written(tape, [source.index for source in tape.sources])


def aliased_write(
    snapshots: Sequence[tuple[Tensor, Tensor]], tape: Tape
) -> CannotCaptureError | None:
    """The refusal of a step that changes a tensor where torch does not see it.

    Args:
        snapshots: tensors and copies of them from just before the step.
    """
    copies = {id(tensor): copy for tensor, copy in snapshots}
    for source in tape.sources:
        copy = copies.get(id(source.tensor))
        if copy is not None and not _equal(copy, source.before):
            return CannotCaptureError(
                f"a tensor of shape {tuple(copy.shape)} is changed by the step through "
                "another name (a NumPy array on its memory, a view); change the tensor itself, in "
                "place",
                source.where,
            )
    return None


def _written(tape: Tape, starts: Iterable[int]) -> set[int]:
    """Those of these tensors that are changed in place, directly or through a view."""
    root = {index: index for index in starts}
    changed: set[int] = set()
    for call in tape.calls:
        if _views(call):
            bases = [root[a.index] for a in call.leaves if isinstance(a, Ref) and a.index in root]
            root.update({index: bases[0] for index in call.results if bases})
        changed.update(root[index] for index in _writes(call) if index in root)
    return changed


def refuse_data_dependence(
    tape: Tape, changed: set[int], *, constant_sources: bool = False
) -> None:
    """Raise if Python reads a value, or a shape depends on a value, that varies between steps.

    `varies` holds the indices of tensors that do, `unsure` those of floating-point tensors that the
    program may change elsewhere.
    """
    varies = set(range(len(tape.input_dtypes))) | changed
    unsure = {s.index for s in tape.sources if s.tensor.is_floating_point()} - changed
    if constant_sources:
        unsure = set()
    types = dict(enumerate(tape.input_dtypes)) | {s.index: s.tensor.dtype for s in tape.sources}
    for call in tape.calls:
        used = {leaf.index for leaf in call.leaves if isinstance(leaf, Ref)}
        random = torch.Tag.nondeterministic_seeded in getattr(call.op, "tags", ())
        moves = not used.isdisjoint(varies) or not used.isdisjoint(unsure)
        if call.reads and moves:
            raise CannotCaptureError(
                "Python reads the value of a tensor that may change from step to step (a branch "
                "or a loop on it, float(), int(), .tolist(), .numpy(), a print); use torch.where "
                "and tensor operations instead",
                call.where,
            )
        if moves and _shape_depends(call, varies, unsure, types):
            raise CannotCaptureError(
                f"the shape of {call.op}'s result depends on the data; use torch.where with a "
                "mask instead",
                call.where,
            )
        if random or not used.isdisjoint(varies):
            varies.update(call.results)
            varies.update(_writes(call))
        elif moves:
            unsure.update(call.results)
        shaped = zip(call.results, call.shapes, strict=False)
        types.update((result, shape[1]) for result, shape in shaped if len(shape) == 2)


def _shape_depends(
    call: Call, varies: set[int], unsure: set[int], types: dict[int, torch.dtype]
) -> bool:
    if torch.Tag.dynamic_output_shape not in getattr(call.op, "tags", ()):
        return False
    if call.op is not _aten.index.Tensor:
        return True
    args, _ = call.arguments(call.leaves)
    masks = [a.index for a in pytree.tree_leaves(args[1]) if isinstance(a, Ref)]
    return any(
        (index in varies or index in unsure) and types.get(index) is torch.bool for index in masks
    )


def _drop_dead(graph: fx.Graph) -> None:
    """Remove unused operations; keep draws (they move the generator) and changes in place."""
    for node in reversed(list(graph.nodes)):
        if node.op not in ("call_function", "get_attr") or node.users:
            continue
        op = node.target
        if isinstance(op, torch._ops.OpOverload) and (
            op._schema.is_mutable or torch.Tag.nondeterministic_seeded in op.tags
        ):
            continue
        graph.erase_node(node)
