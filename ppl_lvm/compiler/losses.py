"""Losses that `CompiledSVI` takes as SVI does."""

import copy
from collections.abc import Callable
from typing import Any

from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)

_JIT: dict[type[ELBO], type[ELBO]] = {
    JitTrace_ELBO: Trace_ELBO,
    JitTraceEnum_ELBO: TraceEnum_ELBO,
    JitTraceGraph_ELBO: TraceGraph_ELBO,
    JitTraceMeanField_ELBO: TraceMeanField_ELBO,
}


def without_jit(loss: ELBO) -> ELBO:
    """The ELBO below one of Pyro's that torch.jit traces: a capture takes its place."""
    if type(loss) not in _JIT:
        return loss
    plain = copy.copy(loss)
    plain.__class__ = _JIT[type(loss)]
    return plain


class FunctionLoss(ELBO):
    """A loss given as a function, as SVI takes it: its gradient is that of its value."""

    def __init__(self, loss: Callable[..., Any], loss_and_grads: Callable[..., Any] | None) -> None:
        super().__init__()
        self._loss, self._loss_and_grads = loss, loss_and_grads

    def _get_trace(self, *args: Any) -> Any:
        raise NotImplementedError  # the function runs the programs

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        return self._loss(model, guide, *args, **kwargs)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        if self._loss_and_grads is not None:
            return self._loss_and_grads(model, guide, *args, **kwargs)
        loss = self._loss(model, guide, *args, **kwargs)
        if not getattr(loss, "requires_grad", False):
            raise ValueError(
                f"loss: {getattr(self._loss, '__qualname__', self._loss)} returns a "
                f"{type(loss).__name__} without a gradient, so that nothing would be trained. Pass "
                "the ELBO itself, or its differentiable_loss."
            )
        loss.backward(retain_graph=True)
        return loss
