"""Log evidence of rows that are evaluated in batches."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.posterior.evidence import MOST_ROWS, Evidence, standard_error
from ppl_lvm.posterior.psis import RELIABLE_K_HAT


def join(parts: Sequence[Evidence], weights: Sequence[Tensor | None]) -> Evidence:
    """The evidence of all rows from that of batches with independent draws.

    Args:
        weights: of the rows of each batch.

    Raises:
        CannotSayError: log p(x) has no terms by row.
    """
    if len(parts) == 1:
        return parts[0]
    per_row, k = torch.cat([p.per_row for p in parts]), np.concatenate([p.k_hat for p in parts])
    ones = [
        torch.ones_like(p.per_row) if w is None else w for p, w in zip(parts, weights, strict=True)
    ]
    if any(len(p.per_row) != len(w) for p, w in zip(parts, ones, strict=True)):
        raise CannotSayError("log p(x) has no terms by row: no plate is over the rows.")
    totals = np.array([float(w.sum()) for w in ones])
    share = totals / totals.sum()
    value = float(share @ [p.value for p in parts])
    any_error = float((k > RELIABLE_K_HAT).mean()) <= MOST_ROWS
    return replace(
        parts[0],
        value=value,
        standard_error=standard_error(per_row, torch.cat(ones)) if any_error else math.nan,
        monte_carlo_error=math.hypot(*(share * [p.monte_carlo_error for p in parts])),
        effective_particles=min(p.effective_particles for p in parts),
        per_row=per_row,
        k_hat=k,
        joint_k_hat=float(k.max()),
        row_by_row=value,
    )
