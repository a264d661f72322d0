"""Minimise a divergence over a family, from draws or exactly on a grid.

fitted = fit_divergence(JensenShannon(), target, Gaussian(1), grid=Grid([-8.0], [8.0]))
fitted.family, fitted.history
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppl_lvm.core import torch_specs
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.divergences.base import Divergence, as_target


@dataclass(frozen=True)
class Grid:
    """Midpoints of a box cut into cells: for one or two columns.

    Args:
        low, high: corners, a number a column.
        cells: along each column.

    Raises:
        ValueError: for corners of different length, or upside down.
    """

    low: Sequence[float]
    high: Sequence[float]
    cells: int = 400

    def __post_init__(self) -> None:
        pairs = list(zip(self.low, self.high, strict=False))
        if len(self.low) != len(self.high) or self.cells < 2 or any(a >= b for a, b in pairs):
            raise ValueError(
                "A grid needs a low and a higher high a column, and cells >= 2; got "
                f"{list(self.low)}, {list(self.high)}, {self.cells}."
            )

    @property
    def volume(self) -> float:
        """Of a cell."""
        return math.prod((b - a) / self.cells for a, b in zip(self.low, self.high, strict=True))

    def points(self, like: Tensor) -> Tensor:
        """(cells ** P, P), of the type and device of `like`."""
        steps = (torch.arange(self.cells).to(like) + 0.5) / self.cells
        axes = [a + (b - a) * steps for a, b in zip(self.low, self.high, strict=True)]
        return torch.cartesian_prod(*axes).reshape(-1, len(axes))


@dataclass(frozen=True)
class Fitted:
    """A family whose divergence from the target was minimised, and the divergence at each step."""

    family: Any
    history: list[float]


def fit_divergence(
    divergence: Divergence,
    target: Any,
    family: Any,
    *,
    num_steps: int = 500,
    num_draws: int = 256,
    optimizer: Any = "Adam(lr=0.02)",
    grid: Grid | None = None,
    seed: int = 0,
) -> Fitted:
    """Minimise D(p, q) over the parameters of a copy of `family`.

    Args:
        divergence: D.
        target: p, see `as_target`.
        family: q, a module with `density()`.
        num_steps: updates.
        num_draws: of p and of q at each step.
        optimizer: as `fit` takes it.
        grid: sum over it in place of draws: exact where it holds all of p and q. Needs p's
            normalised density.
        seed: of the draws.

    Raises:
        ValueError: for a target of which too little is known, a family without parameters or of
            other columns, or numbers out of range.
        FloatingPointError: the divergence became infinite or NaN; names the step.
    """
    if not isinstance(divergence, Divergence):
        raise ValueError(f"A divergence is an object, such as MMD(); got {divergence!r:.80}.")
    p = as_target(target)
    if grid is None:
        divergence.check(p)
    elif p.log_density is None or not p.normalized:
        raise ValueError("On a grid the target's normalized density must be known: leave it out.")
    for name, number, least in (("num_draws", num_draws, 2), ("num_steps", num_steps, 1)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}.")
    q = copy.deepcopy(family)
    parameters = _parameters(q)
    if grid is not None:
        check_columns(q, (len(grid.low),), "grid")
    elif p.draw is not None:
        with preserve_rng():
            check_columns(q, tuple(p.draw(1).shape[1:]), "target")
    points = None if grid is None else grid.points(parameters[0])
    stepper = torch_specs.optimizer(optimizer, parameters)
    history: list[float] = []
    with preserve_rng():
        torch.manual_seed(seed)
        for step in range(num_steps):
            if points is None:
                value = divergence.estimate(p, q.density(), num_draws)
            else:
                assert grid is not None
                assert p.log_density is not None
                log_q = q.density().log_prob(points)
                value = divergence.on_grid(points, p.log_density(points), log_q, grid.volume)
            if not math.isfinite(value.item()):
                raise FloatingPointError(
                    f"{type(divergence).__name__} is {value.item()} at step {step}: p and q lie "
                    "too far apart for it. Start q wider, or lower the learning rate."
                )
            stepper.zero_grad()
            value.backward()
            stepper.step()
            history.append(value.item())
    return Fitted(q, history)


def check_columns(family: Any, columns: tuple[int, ...], what: str) -> None:
    """Refuse a family of other columns than the target or the grid has.

    Raises:
        ValueError: naming both.
    """
    if (shape := tuple(family.density().event_shape)) != columns:
        raise ValueError(
            f"The {what} has rows of shape {columns}, {type(family).__name__} makes rows of shape "
            f"{shape}. Build it for as many columns."
        )


def _parameters(family: Any) -> list[Tensor]:
    """What is fitted of a family.

    Raises:
        ValueError: nothing can be.
    """
    if isinstance(family, type):
        raise ValueError(f"A family is an object: {family.__name__}(…), and not its class.")
    found: list[Tensor] = (
        [w for w in family.parameters() if w.requires_grad] if isinstance(family, nn.Module) else []
    )
    if not found:
        raise ValueError(f"{type(family).__name__} has no parameter to fit: give a torch module.")
    if not hasattr(family, "density"):
        raise ValueError(
            f"{type(family).__name__} has no density() that returns a distribution of rows."
        )
    return found
