"""In which order the operations of a functional graph may be taken: by levels, long sums as one."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

ALIKE = 4  # operations that are taken together, at least
_aten = torch.ops.aten


def random(node: fx.Node) -> bool:
    """Whether an operation draws from torch's generator."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def sums(graph: fx.Graph) -> dict[fx.Node, tuple[list[fx.Node], list[fx.Node]]]:
    """Long sums a + b + c + …: the last addition -> (what is added, the additions before it)."""

    def adds(node: Any) -> bool:
        plain = isinstance(node, fx.Node) and node.target is _aten.add.Tensor
        return plain and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args)

    found = {}
    for node in graph.nodes:
        if not adds(node) or (len(node.users) == 1 and adds(next(iter(node.users)))):
            continue
        leaves, inner, pending = [], [], list(node.args)
        while pending:
            part = pending.pop()
            if adds(part) and len(part.users) == 1:
                inner.append(part)
                pending.extend(part.args)
            else:
                leaves.append(part)
        if len(leaves) >= ALIKE:
            found[node] = (leaves[::-1], inner)
    return found


def levels(
    graph: fx.Graph,
    long_sums: dict[fx.Node, tuple[list[fx.Node], list[fx.Node]]],
    left_out: set[fx.Node],
) -> list[list[fx.Node]]:
    """Operations by the longest way from an input; draws keep their order."""
    level: dict[fx.Node, int] = {}
    levels: dict[int, list[fx.Node]] = defaultdict(list)
    drawn = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            level[node] = 0
            continue
        if node.op != "call_function" or node in left_out:
            continue
        needs: Sequence[fx.Node] = long_sums[node][0] if node in long_sums else node.all_input_nodes
        at = 1 + max((level[n] for n in needs), default=0)
        if random(node):
            at = drawn = max(at, drawn)
        level[node] = at
        levels[at].append(node)
    return [levels[at] for at in sorted(levels)]
