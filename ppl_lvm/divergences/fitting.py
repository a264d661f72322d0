"""Minimize a divergence over a family.

fitted = fit_divergence(JensenShannon(), target, Gaussian(1), grid=Grid([-8.0], [8.0]))
fitted.family, fitted.history
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from ppl_lvm.core import torch_specs
from ppl_lvm.core.arguments import checked
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.validate import CallSyntax, Count, Seed
from ppl_lvm.divergences.base import Divergence, as_target


@dataclass(frozen=True)
class Grid:
    """Cell midpoints of a box, for one or two columns.

    Args:
        low, high: corners, one value per column.
        cells: number of cells along each column.

    Raises:
        ValueError: corners of different length, or low >= high.
    """

    low: Sequence[float]
    high: Sequence[float]
    cells: Annotated[int, Ge(2)] = 400

    def __post_init__(self) -> None:
        pairs = list(zip(self.low, self.high, strict=False))
        if len(self.low) != len(self.high) or self.cells < 2 or any(a >= b for a, b in pairs):
            raise ValueError(
                "Grid: needs low < high for every column, and cells >= 2; got "
                f"{list(self.low)}, {list(self.high)}, {self.cells}."
            )

    @property
    def volume(self) -> float:
        """Volume of a cell."""
        return math.prod((b - a) / self.cells for a, b in zip(self.low, self.high, strict=True))

    def points(self, like: Tensor) -> Tensor:
        """Midpoints (cells ** P, P), with the type and device of `like`."""
        steps = (torch.arange(self.cells).to(like) + 0.5) / self.cells
        axes = [a + (b - a) * steps for a, b in zip(self.low, self.high, strict=True)]
        return torch.cartesian_prod(*axes).reshape(-1, len(axes))


@dataclass(frozen=True)
class Fitted:
    """Fitted family, and the divergence at each step."""

    family: Any
    history: list[float]


@checked
def fit_divergence(
    divergence: Divergence,
    target: Any,
    family: Any,
    *,
    num_steps: Count = 500,
    num_draws: Annotated[int, Ge(2)] = 256,
    optimizer: CallSyntax = "Adam(lr=0.02)",
    grid: Grid | None = None,
    seed: Seed = 0,
) -> Fitted:
    """Minimize D(p, q) over the parameters of a copy of `family`.

    Args:
        divergence: D.
        target: p, see `as_target`.
        family: q, a module with `density()`.
        num_steps: number of updates.
        num_draws: samples of p and of q at each step.
        optimizer: see `fit`.
        grid: sum over a grid in place of samples; exact if the grid covers p and q. Needs p's
            normalized density.
        seed: seed of the samples.

    Raises:
        ValueError: a target without the required parts, a family without parameters or with other
            columns, or an argument out of range.
        FloatingPointError: the divergence became infinite or NaN; names the step.
    """
    p = as_target(target)
    if grid is None:
        divergence.check(p)
    elif p.log_density is None or not p.normalized:
        raise ValueError("grid: the target's normalized density must be known. Omit grid=.")
    q = copy.deepcopy(family)
    parameters = _parameters(q)
    if grid is not None:
        check_columns(q, (len(grid.low),), "grid")
    elif p.draw is not None:
        with preserve_rng():
            check_columns(q, tuple(p.draw(1).shape[1:]), "target")
    points = None if grid is None else grid.points(parameters[0])
    torch_optimizer = torch_specs.optimizer(optimizer, parameters)
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
                    f"{divergence.short_name()} is {value.item()} at step {step}: p and q are too "
                    "far apart. Initialize q wider, or lower the learning rate."
                )
            torch_optimizer.zero_grad()
            value.backward()
            torch_optimizer.step()
            history.append(value.item())
    return Fitted(q, history)


def check_columns(family: Any, columns: tuple[int, ...], what: str) -> None:
    """Reject a family whose columns differ from those of the target or grid.

    Raises:
        ValueError: names both shapes.
    """
    if (shape := tuple(family.density().event_shape)) != columns:
        raise ValueError(
            f"The {what} has rows of shape {columns}, {type(family).__name__} has rows of shape "
            f"{shape}. Build the family with the same number of columns."
        )


def _parameters(family: Any) -> list[Tensor]:
    """Trainable parameters of a family.

    Raises:
        ValueError: no parameters, or no `density`.
    """
    name = family.__name__ if isinstance(family, type) else type(family).__name__
    if isinstance(family, type):
        raise ValueError(f"family: must be an object {name}(…), got the class.")
    parameters: list[Tensor] = (
        [w for w in family.parameters() if w.requires_grad] if isinstance(family, nn.Module) else []
    )
    if not parameters:
        raise ValueError(
            f"family: {name} has no parameter to fit. Give a torch module with parameters."
        )
    if not hasattr(family, "density"):
        raise ValueError(f"family: {name} has no density(). Return a distribution of rows from it.")
    return parameters
