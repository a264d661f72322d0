"""Base of graph passes."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_lvm.compiler.graph.functionalize import functional
from ppl_lvm.compiler.graph.ir import Recording
from ppl_lvm.compiler.graph.schedule import is_random

Stage = Literal["capture", "compile"]


@dataclass(frozen=True)
class RewrittenGraph:
    """A graph, called with the inputs, the constants of the original, and its own `constants`."""

    module: fx.GraphModule
    constants: list[Tensor]

    def in_recording(self, recording: Recording) -> Recording:
        """The recording with this graph in place of the original."""
        constants = [*recording.constants, *self.constants]
        return replace(recording, module=self.module, constants=constants)


@dataclass(frozen=True)
class Pass(ABC):
    """A rewriting of functional graphs that computes the same results, to rounding.

    A graph that changes a tensor in place is left alone, unless nothing else sees that tensor.

    Attributes:
        name: in messages.
        stage: "capture" passes run once on a new recording, and captured steps use the result;
            "compile" passes run when a recording is compiled.
        min_nodes: a graph with fewer nodes is left alone.
        max_share: a result with more than this share of the nodes is discarded.
    """

    name: ClassVar[str]
    stage: ClassVar[Stage]
    min_nodes: int = 0
    max_share: float = float("inf")

    @abstractmethod
    def rewrite(
        self, graph: fx.Graph, constants: Sequence[Tensor]
    ) -> Callable[..., tuple[Tensor, ...]]:
        """Return a function `(*inputs, *constants) -> outputs` that evaluates the graph.

        Args:
            graph: functional; its last inputs are the constants.
            constants: values that never change.
        """

    def function(
        self, module: fx.GraphModule, constants: Sequence[Tensor]
    ) -> Callable[..., tuple[Tensor, ...]] | None:
        """The rewritten graph as a function of tensors, to be traced by the caller.

        None where the graph is too short or changes a tensor that others see.
        """
        graph = functional(module.graph) if len(module.graph.nodes) >= self.min_nodes else None
        return None if graph is None else self.rewrite(graph, constants)

    def apply(
        self, module: fx.GraphModule, inputs: Sequence[Tensor], constants: Sequence[Tensor]
    ) -> RewrittenGraph | None:
        """Rewrite a graph; None where the conditions of the pass do not hold.

        The module is called with `inputs` followed by `constants`. Of the inputs only shapes,
        types and layouts matter.
        """
        function = self.function(module, constants)
        if function is None:
            return None
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = make_fx(function, tracing_mode="fake")(*inputs, *constants)
        lifted = _lift_tensors(traced)
        traced.graph.eliminate_dead_code(_is_needed)
        traced.recompile()
        if len(traced.graph.nodes) >= self.max_share * len(module.graph.nodes):
            return None
        return RewrittenGraph(traced, lifted)


def _lift_tensors(module: fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph contains into arguments."""
    constants = [node for node in module.graph.nodes if node.op == "get_attr"]
    last = [node for node in module.graph.nodes if node.op == "placeholder"][-1]
    for place, node in reversed(list(enumerate(constants))):
        with module.graph.inserting_after(last):
            argument = module.graph.placeholder(f"order_{place}")
        for user in [*node.users]:  # a copy that protects the tensor from changes
            user.replace_all_uses_with(argument)
            module.graph.erase_node(user)
        module.graph.erase_node(node)
    return [getattr(module, str(node.target)) for node in constants]


def _is_needed(node: fx.Node) -> bool:
    """True for an unused node to keep: a draw moves the generator."""
    return node.op in ("placeholder", "output") or is_random(node)
