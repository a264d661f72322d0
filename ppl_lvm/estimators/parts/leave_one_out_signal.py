"""Leave-one-out learning signals of a multi-sample bound.

For a bound F of the log-weights w_1..w_K,

    signal_k = F(w) - F_{-k},   F_{-k} = F with w_k replaced by w_k - c_k + mean_{j≠k} c_j,

where c_k has the terms of w_k that the draw can change. F_{-k} does not depend on the draw given
the draws before it, so it is a baseline that keeps a score-function gradient unbiased. If the draw
can change all of w_k, w_k is replaced by the mean of the other weights: for the mean,
the signal is then (w_k - mean_{j≠k} w_j) / K (leave-one-out); for the log-mean-exp, F_{-k} is
VIMCO's geometric baseline. For a single particle the signal is c.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ppl_lvm.particles.score_terms import ScoreTerm


def leave_one_out_signal(
    bound: Callable[[Tensor], Tensor], log_w: Tensor, term: ScoreTerm
) -> Tensor:
    """F(w) - F_{-k} per particle and member of the site's plates, detached: (K, plates).

    F is `bound`, (K, ...) -> (...), with F(w + a) = F(w) + a. `log_w` is (K, B).

    O(K²) memory: F is called once on all K leave-one-out sets. (For a log-mean-exp, subtracting one
    term from the sum needs O(K), but loses all digits if one weight dominates.)
    """
    c, K = term.cost, len(log_w)
    if K == 1:
        return c  # F(w) = w, less the terms that the draw cannot change
    w = term.expand(log_w.detach())  # (K, plates)
    w = w - w.mean(0)  # joint weights are large, their differences are not
    change = (c.sum(0) - K * c) / (K - 1)  # mean_{j≠k} c_j - c_k
    diagonal = torch.eye(K, dtype=torch.bool, device=w.device)
    diagonal = diagonal.reshape((K, K) + (1,) * (w.dim() - 1))
    replaced = torch.where(
        diagonal, (w + change).unsqueeze(0), w.unsqueeze(1)
    )  # (K, K, plates): particle, set
    return bound(w) - bound(replaced)
