"""Operations that are alike become one: a loop in the program is a dimension in the graph.

A Python loop (`pyro.markov`, a sequential plate) leaves in the recording T copies of the same
operations on tensors of the same shape. Copies that do not wait for each other are taken together:

    f(a_1, c), …, f(a_T, c)   →   vmap(f)(stack(a_1, …, a_T), c)

and stacks of stacked things are stacks already, so that only the ends of a loop pay for stacking.
A gradient that gathers one piece from each turn, g_1 + … + g_T, becomes a sum over the dimension.
Then the number of operations no longer grows with the length of the loop, neither for the compiler
nor at each step. Sums are taken in another order: results agree to rounding.

The graph must be functional: one that changes a tensor in place is given back as it is, unless the
change is of a tensor nobody else sees.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_lvm.compiler.graph.build import Recording
from ppl_lvm.compiler.graph.functionalize import functional
from ppl_lvm.compiler.graph.schedule import random
from ppl_lvm.compiler.passes._level_batching import LevelBatcher

logger = logging.getLogger("ppl_lvm.compiler")

_LONG = 800  # operations; a shorter graph is left alone
_GAIN = 0.5  # a graph that keeps more than this share of its operations is left alone


@dataclass(frozen=True)
class FusedGraph:
    """A graph, to be called with the inputs, the constants and `orders`."""

    module: fx.GraphModule
    orders: list[Tensor]  # places in which stacked things are taken

    def of(self, recording: Recording) -> Recording:
        """The recording with this graph in place of its own."""
        constants = [*recording.constants, *self.orders]
        return replace(recording, module=self.module, constants=constants)


def fuse_isomorphic_ops(
    module: fx.GraphModule, inputs: Sequence[Tensor], constants: Sequence[Tensor]
) -> FusedGraph | None:
    """The graph with alike operations taken together, None where that does not pay.

    The module is called with `inputs` followed by `constants`. Of the inputs only shapes, types
    and layouts matter; constants never change, so that equal ones are one.
    """
    size = len(module.graph.nodes)
    graph = functional(module.graph) if size >= _LONG else None
    if graph is None:
        return None
    equal = _equal(constants)

    def together(*tensors: Tensor) -> tuple[Tensor, ...]:
        return LevelBatcher(graph, tensors, equal).outputs()

    try:
        with torch.no_grad():
            found = make_fx(together, tracing_mode="fake")(*inputs, *constants)
    except Exception as error:  # an operation that has no rule for a further dimension
        logger.info("alike operations are not taken together: %s", error)
        return None
    orders = _lift_tensors(found)
    found.graph.eliminate_dead_code(_kept)
    found.recompile()
    return FusedGraph(found, orders) if len(found.graph.nodes) < _GAIN * size else None


def _lift_tensors(module: fx.GraphModule) -> list[Tensor]:
    """Make arguments of the tensors that a graph holds."""
    held = [node for node in module.graph.nodes if node.op == "get_attr"]
    last = [node for node in module.graph.nodes if node.op == "placeholder"][-1]
    for place, node in reversed(list(enumerate(held))):
        with module.graph.inserting_after(last):
            argument = module.graph.placeholder(f"order_{place}")
        for user in [*node.users]:  # a copy that would keep the held tensor from being changed
            user.replace_all_uses_with(argument)
            module.graph.erase_node(user)
        module.graph.erase_node(node)
    return [getattr(module, str(node.target)) for node in held]


def _kept(node: fx.Node) -> bool:
    """Draws are kept although nobody may use them: they move the generator."""
    return node.op in ("placeholder", "output") or random(node)


def _equal(constants: Sequence[Tensor]) -> list[int]:
    """For each constant the place of the first that is equal to it."""

    def same(a: Tensor, b: Tensor) -> bool:
        alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        return alike and torch.equal(a, b)

    places: list[int] = []
    for place, constant in enumerate(constants):
        firsts = [p for p in dict.fromkeys(places) if same(constants[p], constant)]
        places.append(firsts[0] if firsts else place)
    return places
