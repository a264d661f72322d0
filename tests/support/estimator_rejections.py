"""Reasons for which estimators reject a pair."""

from typing import Any

import torch
from torch import Tensor

import ppl_lvm.estimators as estimators

X = torch.full((4,), 0.8)


def rejections(model: Any, guide: Any, x: Tensor = X) -> dict[str, str]:
    """Name -> reason of each estimator that rejects the pair."""
    reasons = {}
    for name in estimators.__all__:
        try:
            getattr(estimators, name)().loss(model, guide, x)
        except ValueError as error:
            reasons[name] = str(error)
    return reasons
