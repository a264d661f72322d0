"""Graphs of derivatives."""

from typing import Any

from torch import Tensor


def leaves(value: Tensor) -> list[Tensor]:
    """Leaves that a tensor is computed from, such as parameters; itself if it is one."""
    if value.grad_fn is None:
        return [value] if value.requires_grad else []
    stack: list[Any] = [value.grad_fn]
    seen: set[Any] = set()
    result: list[Tensor] = []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            result.append(variable)
        stack += [below for below, _ in node.next_functions]
    return result
