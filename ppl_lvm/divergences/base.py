"""What every divergence is: an estimate from draws, the same on a grid, and what it asks of p.

    estimate(p, q, n)                    from n draws, differentiable in q's parameters
    on_grid(points, log_p, log_q, v)     a sum over the points of a grid of cells of volume v

p is the target: data, a density known perhaps up to a constant, or both. q is the family.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution


class DensityFamily(Protocol):
    """A distribution with parameters to fit."""

    def density(self) -> Any:
        """Its distribution now: `rsample((n,))` of (n, P) and `log_prob` of (n, P)."""


@dataclass(frozen=True)
class Target:
    """p: what is known of it.

    Attributes:
        log_density: log p(x) of rows (n, P), (n,); up to a constant where `normalized` is False.
        draw: n -> rows (n, P) from p.
        normalized: whether `log_density` integrates to one.
    """

    log_density: Callable[[Tensor], Tensor] | None = None
    draw: Callable[[int], Tensor] | None = None
    normalized: bool = True


def as_target(given: Any) -> Target:
    """A target from data (N, P), a distribution of rows (P,), or as it is.

    Raises:
        ValueError: for anything else, and rows that are not numbers throughout.
    """
    if isinstance(given, Target):
        return given
    if isinstance(given, np.ndarray) and given.dtype.kind in "fiub":
        given = torch.from_numpy(given).to(torch.get_default_dtype())
    if isinstance(given, Tensor) and given.dim() == 2 and len(given):
        if (wrong := ~given.isfinite()).any():
            row, column = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"The target's row {row}, column {column} is {given[row, column].item()} "
                f"({int(wrong.sum())} such in all). Leave those rows out."
            )
        return Target(draw=lambda n: given[torch.randint(len(given), (n,), device=given.device)])
    if isinstance(given, Tensor):
        raise ValueError(
            f"A target of data is rows (N, P), got {tuple(given.shape)}."
            + (" One column is x.unsqueeze(1)." if given.dim() == 1 else "")
        )
    if isinstance(given, Distribution) and len(given.event_shape) == 1 and not given.batch_shape:
        return Target(given.log_prob, lambda n: given.sample((n,)))
    raise ValueError(
        "A target is rows (N, P), a distribution of one row (event (P,), no batch), or a Target; "
        f"got {given!r:.100}. Wrap a scalar distribution: fn.expand((1,)).to_event(1)."
    )


class Divergence(ABC):
    """D(p, q) ≥ 0, 0 where p = q; nats where it has a unit.

    Attributes:
        needs: what it must know of the target: "density", "normalized density", "draws".
        unbiased: whether E[estimate] = D, and so for the gradient, up to a constant of q.
    """

    needs: ClassVar[tuple[str, ...]]
    unbiased: ClassVar[bool] = True

    @abstractmethod
    def estimate(self, p: Target, q: Any, n: int) -> Tensor:
        """D from n draws, a scalar; less a constant where p's constants are not known."""

    @abstractmethod
    def on_grid(self, points: Tensor, log_p: Tensor, log_q: Tensor, volume: float) -> Tensor:
        """D by a sum over `points` (G, P) with log-densities (G,), a scalar."""

    def missing(self, p: Target) -> list[str]:
        """What it needs and is not known of a target."""
        has = {
            "density": p.log_density is not None,
            "normalized density": p.log_density is not None and p.normalized,
            "draws": p.draw is not None,
        }
        return [need for need in self.needs if not has[need]]

    def check(self, p: Target) -> None:
        """Refuse a target of which too little is known.

        Raises:
            ValueError: what is missing.
        """
        if missing := self.missing(p):
            raise ValueError(
                f"{type(self).__name__} needs the target's {' and '.join(missing)}. Give a "
                "Target with it, or choose a divergence that does without: ForwardKL, MMD and "
                "Energy take draws alone, ReverseKL and Renyi a density up to a constant."
            )
