"""Log-probability of the observed values of a model."""

from typing import Any

from pyro import poutine
from torch import Tensor


def observed_log_prob(model: Any, x: Tensor) -> Tensor:
    """log p of the site "x", (N,), in one run of the model on `x`."""
    trace = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    log_prob: Tensor = trace.nodes["x"]["log_prob"]
    return log_prob
