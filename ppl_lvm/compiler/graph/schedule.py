"""Level schedule of a functional graph."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

MIN_GROUP = 4  # operations that are fused, at least
_aten = torch.ops.aten


def is_random(node: fx.Node) -> bool:
    """True if an operation draws from torch's generator."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def long_sums(graph: fx.Graph) -> dict[fx.Node, tuple[list[fx.Node], list[fx.Node]]]:
    """Sums a + b + c + …: the last addition -> (the terms, the additions before it)."""

    def adds(node: Any) -> bool:
        plain = isinstance(node, fx.Node) and node.target is _aten.add.Tensor
        return plain and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args)

    sums = {}
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
        if len(leaves) >= MIN_GROUP:
            sums[node] = (leaves[::-1], inner)
    return sums


def levels(
    graph: fx.Graph, sums: dict[fx.Node, tuple[list[fx.Node], list[fx.Node]]], skipped: set[fx.Node]
) -> list[list[fx.Node]]:
    """Operations grouped by their longest path from an input; draws keep their order."""
    level: dict[fx.Node, int] = {}
    levels: dict[int, list[fx.Node]] = defaultdict(list)
    last_draw = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            level[node] = 0
            continue
        if node.op != "call_function" or node in skipped:
            continue
        needs: Sequence[fx.Node] = sums[node][0] if node in sums else node.all_input_nodes
        depth = 1 + max((level[n] for n in needs), default=0)
        if is_random(node):
            depth = last_draw = max(depth, last_draw)
        level[node] = depth
        levels[depth].append(node)
    return [levels[depth] for depth in sorted(levels)]
