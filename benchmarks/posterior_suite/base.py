"""Parts of the programs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

Draws = Mapping[str, Tensor]
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Posterior:
    """A model with its data.

    Attributes:
        model: the program, `model(*batch)`.
        batch: its arguments.
        read: draws of its sites (S, …) -> parameters of the reference (S, …), one entry per name.
    """

    model: Callable[..., Any]
    batch: tuple[Tensor, ...]
    read: Callable[[Draws], dict[str, Tensor]]


def flat(name: str, size: int | None = None) -> Tensor:
    """A latent with a flat prior on the real line."""
    shape = () if size is None else (size,)
    return _improper(name, constraints.real, shape)


def flat_positive(name: str) -> Tensor:
    """A latent with a flat prior on (0, ∞)."""
    return _improper(name, constraints.positive, ())


def _improper(name: str, support: Any, shape: tuple[int, ...]) -> Tensor:
    if shape:
        support = constraints.independent(support, len(shape))
    value: Tensor = pyro.sample(name, dist.ImproperUniform(support, (), shape))
    return value


def same_names(draws: Draws) -> dict[str, Tensor]:
    """Vectors as `name[1]`, `name[2]`, …; scalars by their names."""
    result = {}
    for name, value in draws.items():
        if value.dim() == 1:
            result[name] = value
        else:
            result |= {f"{name}[{i + 1}]": value[:, i] for i in range(value.shape[1])}
    return result


def tensor(values: Any) -> Tensor:
    """Published numbers in double precision."""
    return torch.as_tensor(values, dtype=torch.float64)
