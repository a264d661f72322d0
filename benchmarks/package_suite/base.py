"""One program of a package."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro.infer import ELBO
from torch import Tensor


@dataclass
class Fit:
    """A model, its guide and objective, and the arguments of a step."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    loss: ELBO
    args: tuple[Any, ...]


@dataclass(frozen=True)
class PackageProgram:
    """A program and where it comes from.

    Attributes:
        package: the name in the Python package index, or the source of the formulas.
        make: a fresh fit; the import of a missing package raises.
        rate: Adam's.
    """

    package: str
    make: Callable[[], Fit]
    rate: float = 1e-3


def rows_of(generator: Any, *size: int) -> Tensor:
    """Standard normal numbers from a generator, of the default type."""
    import torch

    return torch.randn(*size, generator=generator)
