"""Functional copies of graphs."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_lvm.compiler.graph.functionalize import functional
from ppl_lvm.compiler.passes import PIPELINE


def _change_an_input(x: Tensor) -> tuple[Tensor, ...]:
    x.mul_(2.0)
    return (x + 1,)


def _change_through_a_view(x: Tensor) -> tuple[Tensor, ...]:
    y = x + 1
    y[0].mul_(2.0)
    return (y,)


@pytest.mark.parametrize("function", [_change_an_input, _change_through_a_view])
def test_aliased_in_place_change_has_no_functional_copy_and_no_pass(function: Any) -> None:
    x = torch.randn(4)
    module = make_fx(function)(x.clone())
    assert functional(module.graph) is None
    assert [graph_pass.apply(module, [x], []) for graph_pass in PIPELINE] == [None] * len(PIPELINE)


def test_unaliased_in_place_change_becomes_a_functional_operation() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return ((x + 1).clamp_(min=0.5).mul_(2.0),)

    x = torch.randn(4)
    graph = functional(make_fx(function)(x).graph)
    assert graph is not None
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    aten = torch.ops.aten
    assert targets == [aten.add.Tensor, aten.clamp.default, aten.mul.Tensor]
