"""Bounds and gradient estimators, one file each. `__all__` is the only list of them."""

from ppl_lvm.estimators.elbo import ELBO
from ppl_lvm.estimators.iwae import IWAE

__all__ = [
    "ELBO",
    "IWAE",
]
