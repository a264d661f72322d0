"""Leave-one-out learning signals of a multi-sample bound.

For a bound F of the log-weights w_1..w_K,

    signal_k = F(w) - F_{-k},   F_{-k} = F with w_k replaced by the mean of the other w_j,

F_{-k} does not depend on particle k, so it is a baseline that keeps a score-function gradient
unbiased. If F is the mean, the signal is (w_k - mean_{j≠k} w_j) / K (leave-one-out); if F is the
log-mean-exp, F_{-k} is VIMCO's geometric baseline. For a single particle the signal is F.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def leave_one_out_signal(bound: Callable[[Tensor], Tensor], log_w: Tensor) -> Tensor:
    """F(w) - F_{-k} per particle, detached: (K, ...) -> (K, ...). F is `bound`: (K, ...) -> (...).

    O(K²) memory: F is called once on all K leave-one-out sets. (For a log-mean-exp, subtracting one
    term from the sum needs O(K), but loses all digits if one weight dominates.)
    """
    w = log_w.detach()  # (K, ...)
    K = len(w)
    if K == 1:
        return bound(w).unsqueeze(0)
    others = (w.sum(0) - w) / (K - 1)  # (K, ...)
    diagonal = torch.eye(K, dtype=torch.bool, device=w.device)
    diagonal = diagonal.reshape((K, K) + (1,) * (w.dim() - 1))
    replaced = torch.where(
        diagonal, others.unsqueeze(0), w.unsqueeze(1)
    )  # (K, K, ...): particle, set
    return bound(w) - bound(replaced)
