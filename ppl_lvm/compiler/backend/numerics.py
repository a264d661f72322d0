"""Checks of numerical results: finite, equal to rounding."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def all_finite(losses: Any) -> bool:
    """True if every number of a result is finite."""
    return all(
        bool(value.isfinite().all()) if isinstance(value, Tensor) else math.isfinite(value)
        for value in pytree.tree_leaves(losses)
        if isinstance(value, Tensor | float | int)
    )


def equal_to_rounding(actual: Tensor, expected: Tensor) -> bool:
    """True if two tensors agree to 1e-4 of the largest entry; integers are not compared."""
    if not expected.is_floating_point() or not expected.numel():
        return True
    scale = float(expected.abs().nan_to_num().max())
    return torch.allclose(actual, expected, rtol=1e-4, atol=1e-4 * scale, equal_nan=True)
