"""Indices that count 0, 1, …, n - 1, as the values of an enumerated variable do, are views."""

import torch
from torch import Tensor, fx

_aten = torch.ops.aten


def indexed(x: Tensor, indices: list[Tensor]) -> Tensor:
    """`x[i]` for an index that counts 0, 1, …: a view, if it counts to the end."""
    (i,) = indices
    if i.numel() != len(x):
        return x[i]
    return x.reshape(i.shape + x.shape[1:])


def index_put(x: Tensor, indices: list[Tensor], values: Tensor, add: bool = False) -> Tensor:
    """`x` with `values` put, or added, at `x[i]`, for such an index.

    Beside being shorter, it keeps such graphs from the compiler's scatter, which torch 2.13 may
    put after a sum over what is scattered.
    """
    (i,) = indices
    if i.numel() != len(x) or values.shape != i.shape + x.shape[1:]:
        return _aten.index_put.default(x, indices, values, add)
    values = values.reshape(x.shape)
    return x + values if add else values


def counting(graph: fx.Graph) -> set[fx.Node]:
    """Indices 0, 1, …, n - 1 in whatever shape: the values of an enumerated variable."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.target is _aten.arange.default or (
            node.target in (_aten.view.default, _aten.reshape.default, _aten.unsqueeze.default)
            and node.args[0] in found
        ):
            found.add(node)
    return found
