"""Paths of L-BFGS from random starts.

A path keeps its iterates and their gradients, from which Pathfinder estimates inverse Hessians.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.approximation.unconstrained import LogDensity

HISTORY = 6  # J, pairs of differences that L-BFGS keeps
MAX_ITERATIONS = 1000
FAR = 1e100  # stands for the objective where the density is not finite


@dataclass(frozen=True)
class AscentPath:
    """Iterates of a maximization of ℓ.

    Attributes:
        points: (L, D), from the start to the last.
        values: ℓ there (L,).
        gradients: ∇ℓ there (L, D).
        converged: the gradient vanished, or no step of the line search raised ℓ further.
    """

    points: Tensor
    values: Tensor
    gradients: Tensor
    converged: bool

    @property
    def mode(self) -> Tensor:
        """The last iterate (D,)."""
        return self.points[-1]


def follow_path(target: LogDensity, start: Tensor) -> AscentPath:
    """Maximize ℓ from a start (D,) by L-BFGS with SciPy's line search."""
    from scipy.optimize import minimize

    seen: dict[bytes, tuple[float, np.ndarray]] = {}
    iterates: list[np.ndarray] = [start.numpy().copy()]

    def negative(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = target(torch.from_numpy(x.copy()).to(target.dtype).unsqueeze(0))
        finite = bool(value.isfinite().all() and gradient.isfinite().all())
        result = (
            (-value.item(), -gradient[0].double().numpy()) if finite else (FAR, np.zeros_like(x))
        )
        seen[x.tobytes()] = result
        return result

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result = minimize(
            negative,
            start.double().numpy(),
            jac=True,
            method="L-BFGS-B",
            callback=lambda x: iterates.append(x.copy()),
            options={
                "maxcor": HISTORY,
                "maxiter": MAX_ITERATIONS,
                "maxfun": 4 * MAX_ITERATIONS,
                "ftol": 1e-13,
                "gtol": 1e-6,
                "maxls": 50,
            },
        )
    rows = [(x, *seen[x.tobytes()]) for x in iterates if x.tobytes() in seen]
    rows = [row for row in rows if row[1] < FAR]
    points, values, gradients = (np.stack(part) for part in zip(*rows, strict=True))
    return AscentPath(
        torch.from_numpy(points),
        -torch.from_numpy(values),
        -torch.from_numpy(gradients),
        bool(result.success),
    )
