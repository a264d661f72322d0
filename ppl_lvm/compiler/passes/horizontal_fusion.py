"""Horizontal fusion of isomorphic operations.

A Python loop (`pyro.markov`, a sequential plate) leaves in the recording T copies of the same
operations on tensors of the same shape. Copies that do not depend on each other are fused:

    f(a_1, c), …, f(a_T, c)   →   vmap(f)(stack(a_1, …, a_T), c)

The arguments of a fused operation are often results of a fused operation and stacked already, so
that stacking is needed at the ends of a loop only. A gradient that sums one term per iteration,
g_1 + … + g_T, becomes a sum over the dimension. The number of operations then no longer grows with
the length of the loop, neither for the compiler nor at each step. Sums are taken in another order:
results agree to rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from ppl_lvm.compiler.passes.base import Pass, Stage
from ppl_lvm.compiler.passes.level_batching import LevelBatcher


@dataclass(frozen=True)
class HorizontalFusion(Pass):
    """Replace T isomorphic operations of an unrolled loop by one batched operation."""

    name: ClassVar[str] = "horizontal fusion"
    stage: ClassVar[Stage] = "capture"
    min_nodes: int = 800
    max_share: float = 0.5

    def rewrite(
        self, graph: fx.Graph, constants: Sequence[Tensor]
    ) -> Callable[..., tuple[Tensor, ...]]:
        equal = _first_equal(constants)
        return lambda *tensors: LevelBatcher(graph, tensors, equal).outputs()


def _first_equal(constants: Sequence[Tensor]) -> list[int]:
    """For each constant the place of the first that is equal to it."""

    def equal(a: Tensor, b: Tensor) -> bool:
        comparable = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        return comparable and torch.equal(a, b)

    places: list[int] = []
    for place, constant in enumerate(constants):
        firsts = [p for p in dict.fromkeys(places) if equal(constants[p], constant)]
        places.append(firsts[0] if firsts else place)
    return places
