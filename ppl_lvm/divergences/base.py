"""Base class of divergences, and their targets.

    estimate(p, q, n)                    from n samples, differentiable in q's parameters
    on_grid(points, log_p, log_q, v)     a sum over the points of a grid with cell volume v

p is the target: data, a density (known possibly up to a constant), or both. q is the family.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from ppl_lvm.core.arguments import checked
from ppl_lvm.core.call_syntax import settings_of


class DensityFamily(Protocol):
    """A distribution with parameters to fit."""

    def density(self) -> Any:
        """Current distribution: `rsample((n,))` is (n, P), `log_prob` takes (n, P)."""


@dataclass(frozen=True)
class Target:
    """The known parts of a target p.

    Attributes:
        log_density: log p(x) (n,) of rows (n, P); up to a constant where `normalized` is False.
        draw: n -> rows (n, P) sampled from p.
        normalized: True if the density integrates to one.
    """

    log_density: Callable[[Tensor], Tensor] | None = None
    draw: Callable[[int], Tensor] | None = None
    normalized: bool = True


@checked
def as_target(target: Any) -> Target:
    """Target of data (N, P), of a distribution with event shape (P,), or a `Target` itself.

    Raises:
        ValueError: for anything else, and for rows with missing or infinite values.
    """
    if isinstance(target, Target):
        return target
    if isinstance(target, np.ndarray) and target.dtype.kind in "fiub":
        target = torch.from_numpy(target).to(torch.get_default_dtype())
    if isinstance(target, Tensor) and target.layout is not torch.strided:
        raise ValueError("target: data are a sparse tensor. Pass x.to_dense().")
    if isinstance(target, Tensor) and target.is_meta:
        raise ValueError("target: data on the device 'meta' have no values. Pass them on the CPU.")
    if isinstance(target, Tensor) and target.dim() == 2 and len(target):
        if (bad := ~target.isfinite()).any():
            row, column = bad.nonzero()[0].tolist()
            raise ValueError(
                f"target: row {row}, column {column} is {target[row, column].item()} "
                f"({int(bad.sum())} such values in all). Remove those rows."
            )
        rows = target if target.is_floating_point() else target.to(torch.get_default_dtype())
        return Target(draw=lambda n: rows[torch.randint(len(rows), (n,), device=rows.device)])
    if isinstance(target, Tensor):
        raise ValueError(
            f"target: data must be rows (N, P), got {tuple(target.shape)}."
            + (" Use x.unsqueeze(1) for one column." if target.dim() == 1 else "")
        )
    if isinstance(target, Distribution) and len(target.event_shape) == 1 and not target.batch_shape:
        return Target(target.log_prob, lambda n: target.sample((n,)))
    raise ValueError(
        "target: must be rows (N, P), a distribution with event shape (P,) and no batch shape, or "
        f"a Target; got {target!r:.100}. Wrap a scalar distribution: "
        "Normal(torch.zeros(1), 1.0).to_event(1)."
    )


class Divergence(ABC):
    """D(p, q) ≥ 0, 0 if p = q; nats where it has a unit.

    Attributes:
        needs: required parts of the target: "density", "normalized density", "draws".
        unbiased: True if E[estimate] = D, for value and gradient, up to a constant in q.
    """

    needs: ClassVar[tuple[str, ...]]
    unbiased: ClassVar[bool] = True

    @abstractmethod
    def estimate(self, p: Target, q: Any, n: int) -> Tensor:
        """Estimate of D from n samples, a scalar; up to a constant if p's are unknown."""

    @abstractmethod
    def on_grid(self, points: Tensor, log_p: Tensor, log_q: Tensor, volume: float) -> Tensor:
        """D as a sum over `points` (G, P) with log-densities (G,), a scalar."""

    def missing(self, p: Target) -> list[str]:
        """Required parts that the target lacks."""
        available = {
            "density": p.log_density is not None,
            "normalized density": p.log_density is not None and p.normalized,
            "draws": p.draw is not None,
        }
        return [need for need in self.needs if not available[need]]

    def check(self, p: Target) -> None:
        """Reject a target without the required parts.

        Raises:
            ValueError: names the missing parts.
        """
        if missing := self.missing(p):
            raise ValueError(
                f"{self.short_name()} needs the target's {' and '.join(missing)}. Give a Target "
                "with it, or choose another divergence: ForwardKL, MMD and Energy need draws only, "
                "ReverseKL and Renyi a density up to a constant."
            )

    @classmethod
    def short_name(cls) -> str:
        """Class name without the suffix "Divergence" or "Distance"."""
        return cls.__name__.removesuffix("Divergence").removesuffix("Distance")

    @property
    def name(self) -> str:
        """Name in call syntax: Renyi(alpha=0.2)."""
        settings = settings_of(self) or {}
        arguments = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        return self.short_name() + (f"({arguments})" if arguments else "")
