"""How much of a bound is particle k's own doing: its learning signal against the other particles.

For a bound F of the log-weights w_1..w_K,

    signal_k = F(w) - F_{-k},   F_{-k} = F with w_k replaced by the mean of the other w_j,

and F_{-k} knows nothing of particle k, so it is a baseline that leaves a score-function gradient
unbiased. With F the mean this is (w_k - mean_{j≠k} w_j) / K (leave-one-out), with the
log-mean-exp VIMCO's geometric baseline. A single particle has no others: signal = F.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def leave_one_out_signal(bound: Callable[[Tensor], Tensor], log_w: Tensor) -> Tensor:
    """F(w) - F_{-k} per particle, detached: (K, ...) -> (K, ...). F is `bound`: (K, ...) -> (...).

    O(K²) memory: F sees all K leave-one-out sets in one call. (For a log-mean-exp the sets could be
    had in O(K) by subtracting one term from the sum, which loses all digits where one weight is
    most of it.)
    """
    w = log_w.detach()  # (K, ...)
    K = len(w)
    if K == 1:
        return bound(w).unsqueeze(0)
    others = (w.sum(0) - w) / (K - 1)  # (K, ...)
    own = torch.eye(K, dtype=torch.bool, device=w.device)
    own = own.reshape((K, K) + (1,) * (w.dim() - 1))
    replaced = torch.where(own, others.unsqueeze(0), w.unsqueeze(1))  # (K, K, ...): slot, set
    return bound(w) - bound(replaced)
