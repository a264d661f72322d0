"""Iota indices 0, 1, …, n - 1."""

import torch
from torch import Tensor, fx

_aten = torch.ops.aten


def index_by_iota(x: Tensor, indices: list[Tensor]) -> Tensor:
    """`x[i]` for an iota index i: a view, if i covers all of x."""
    (i,) = indices
    if i.numel() != len(x):
        return x[i]
    return x.reshape(i.shape + x.shape[1:])


def put_by_iota(x: Tensor, indices: list[Tensor], values: Tensor, add: bool = False) -> Tensor:
    """`x` with `values` put, or added, at `x[i]`, for an iota index i.

    It is shorter than a scatter. It also avoids the compiler's scatter, which torch 2.13 may
    place after a sum over the scattered values.
    """
    (i,) = indices
    if i.numel() != len(x) or values.shape != i.shape + x.shape[1:]:
        return _aten.index_put.default(x, indices, values, add)
    values = values.reshape(x.shape)
    return x + values if add else values


def iota_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that are 0, 1, …, n - 1 in any shape: the values of an enumerated variable."""
    nodes: set[fx.Node] = set()
    for node in graph.nodes:
        if node.target is _aten.arange.default or (
            node.target in (_aten.view.default, _aten.reshape.default, _aten.unsqueeze.default)
            and node.args[0] in nodes
        ):
            nodes.add(node)
    return nodes
