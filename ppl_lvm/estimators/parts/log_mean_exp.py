"""log 1/K Σ_k exp w_k over particles, without overflow."""

import math

from torch import Tensor


def log_mean_exp(log_w: Tensor) -> Tensor:
    """log 1/K Σ_k exp log_w[k]: (K, ...) -> (...)."""
    return log_w.logsumexp(0) - math.log(len(log_w))
