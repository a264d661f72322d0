"""Gradient hooks of parameters.

A hook of a leaf tensor (`register_hook`, `register_post_accumulate_grad_hook`) is Python, which a
recording lacks. A recorded step runs without the hooks; they then run on the gradient that it has
left, and so they do on the gradients of each captured step. That is what autograd does where a
step has one backward pass and leaves its gradient unchanged, which the recording proves.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def has_hooks(parameter: Tensor) -> bool:
    """True if a parameter has gradient hooks."""
    hooked: Any = parameter
    return bool(hooked._backward_hooks or hooked._post_accumulate_grad_hooks)


@contextmanager
def without_hooks(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Backward passes that run no hooks of these parameters."""
    tables: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
    for parameter in filter(has_hooks, parameters):
        hooked: Any = parameter
        for table in (hooked._backward_hooks, hooked._post_accumulate_grad_hooks):
            if table:
                tables.append((table, dict(table)))
                table.clear()
    try:
        yield
    finally:
        for table, hooks in tables:
            table.update(hooks)


@torch.no_grad()
def run_hooks(parameters: Sequence[Tensor]) -> None:
    """Run the hooks on these parameters' gradients, as the end of a backward pass does."""
    for parameter in parameters:
        hooked: Any = parameter
        for hook in list((hooked._backward_hooks or {}).values()):
            changed = hook(parameter.grad)
            if changed is not None:
                parameter.grad = changed
        for hook in list((hooked._post_accumulate_grad_hooks or {}).values()):
            hook(parameter)
