"""Paths of L-BFGS from random starts.

A path keeps its iterates and their gradients, from which Pathfinder estimates inverse Hessians.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.approximation.unconstrained import LogDensity

Evaluation = tuple[float, np.ndarray]  # −ℓ and its gradient at a point (D,)

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


def follow_paths(target: LogDensity, starts: Tensor) -> list[AscentPath]:
    """Maximize ℓ from starts (S, D) by L-BFGS with SciPy's line search.

    The paths are independent. Each waits for the others at every evaluation, so that one call of
    the target serves all of them. Their threads run SciPy only; this thread runs the program.
    """
    count = len(starts)
    requests: SimpleQueue[tuple[int, np.ndarray | None]] = SimpleQueue()
    replies: list[SimpleQueue[Evaluation | None]] = [SimpleQueue() for _ in range(count)]

    def path(i: int) -> AscentPath:
        def evaluate(x: np.ndarray) -> Evaluation:
            requests.put((i, x))
            reply = replies[i].get()
            if reply is None:
                raise RuntimeError("The density failed.")  # its own error is raised beside
            return reply

        try:
            return _maximized(evaluate, starts[i].double().numpy())
        finally:
            requests.put((i, None))

    with warnings.catch_warnings(), ThreadPoolExecutor(count) as threads:
        warnings.simplefilter("ignore", RuntimeWarning)
        futures = [threads.submit(path, i) for i in range(count)]
        try:
            running = count
            while running:
                messages = [requests.get() for _ in range(running)]
                points = {i: x for i, x in sorted(messages, key=itemgetter(0)) if x is not None}
                running = len(points)
                if running:
                    for i, evaluation in zip(points, _evaluated(target, points), strict=True):
                        replies[i].put(evaluation)
        finally:
            for reply in replies:
                reply.put(None)
    return [future.result() for future in futures]


def _evaluated(target: LogDensity, points: dict[int, np.ndarray]) -> list[Evaluation]:
    """−ℓ and its gradient at points (D,)."""
    u = torch.from_numpy(np.stack(list(points.values()))).to(target.dtype)
    values, gradients = target(u)
    finite = values.isfinite() & gradients.isfinite().all(1)
    values = torch.where(finite, -values.double(), FAR)
    gradients = torch.where(finite.unsqueeze(1), -gradients.double(), 0.0)
    return list(zip(values.tolist(), gradients.numpy(), strict=True))


def _maximized(evaluate: Callable[[np.ndarray], Evaluation], start: np.ndarray) -> AscentPath:
    from scipy.optimize import minimize

    seen: dict[bytes, Evaluation] = {}  # since the last iterate
    rows: list[tuple[np.ndarray, float, np.ndarray]] = []

    def negative(x: np.ndarray) -> Evaluation:
        seen[x.tobytes()] = result = evaluate(x.copy())
        if not rows and x.tobytes() == start.tobytes():
            keep(x)
        return result

    def keep(x: np.ndarray) -> None:
        if x.tobytes() in seen and seen[x.tobytes()][0] < FAR:
            rows.append((x.copy(), *seen[x.tobytes()]))
        seen.clear()

    result = minimize(
        negative,
        start,
        jac=True,
        method="L-BFGS-B",
        callback=keep,
        options={
            "maxcor": HISTORY,
            "maxiter": MAX_ITERATIONS,
            "maxfun": 4 * MAX_ITERATIONS,
            "ftol": 1e-13,
            "gtol": 1e-6,
            "maxls": 50,
        },
    )
    points, values, gradients = (np.stack(part) for part in zip(*rows, strict=True))
    return AscentPath(
        torch.from_numpy(points),
        -torch.from_numpy(values),
        -torch.from_numpy(gradients),
        bool(result.success),
    )
