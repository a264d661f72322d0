"""The methods by name."""

from collections.abc import Callable

import torch

from ppl_lvm.approximation.automatic import STARTS, distinct_normals, find_posterior
from ppl_lvm.approximation.batch_and_match import batch_and_match
from ppl_lvm.approximation.dadvi import dadvi
from ppl_lvm.approximation.importance import probe, weigh
from ppl_lvm.approximation.improper import improper
from ppl_lvm.approximation.laplace import laplace
from ppl_lvm.approximation.normal import MAX_DENSE, Normal
from ppl_lvm.approximation.pathfinder import pathfinder
from ppl_lvm.approximation.paths import AscentPath, follow_paths
from ppl_lvm.approximation.result import KEPT_DRAWS, Approximation
from ppl_lvm.approximation.unconstrained import LinAlgError, LogDensity, starting_points
from ppl_lvm.posterior.psis import RELIABLE_K_HAT


def approximate(target: LogDensity, method: str, generator: torch.Generator) -> Approximation:
    """The posterior of `target` by one of `NORMALS`, or "auto"."""
    if method == "auto":
        return find_posterior(target, generator)
    if target.dim > MAX_DENSE and method in FEW_VALUES:
        raise ValueError(
            f"method={method!r}: it keeps all covariances, of at most {MAX_DENSE} values, and the "
            f"latents have {target.dim:,}. Use method='auto', 'pathfinder' or 'batch_and_match'."
        )
    return judged(target, NORMALS[method](target, generator), method, generator)


def judged(
    target: LogDensity, normal: Normal, method: str, generator: torch.Generator
) -> Approximation:
    """Weighted draws of a normal, and the verdict on them."""
    weighted = weigh(target, normal, generator)
    problem = improper(target, weighted.normal)
    reasons = [problem] if problem else probe(target, weighted, generator)
    if weighted.k_hat > RELIABLE_K_HAT:
        if not problem:
            reasons.append(f"k̂ of the importance weights is {weighted.k_hat:.2f}")
        draws = weighted.normal.sample(KEPT_DRAWS, generator)
    else:
        draws = weighted.resampled(len(weighted.draws), generator)
    return Approximation(
        method,
        weighted.normal,
        draws.unsqueeze(0),
        weighted.log_weights,
        weighted.log_evidence,
        weighted.k_hat,
        target.evaluations,
        reasons=reasons,
    )


def _laplace(target: LogDensity, generator: torch.Generator) -> Normal:
    """Laplace at the highest mode of several paths."""
    best = _best_path(target, generator)
    rough = pathfinder(target, best, generator)
    scale = torch.ones(target.dim, dtype=target.dtype) if rough is None else rough[0].sd
    return laplace(target, best.mode, scale)[0]


def _best_path(target: LogDensity, generator: torch.Generator) -> AscentPath:
    paths = follow_paths(target, starting_points(target, STARTS, generator))
    return max(paths, key=lambda path: float(path.values[-1]))


def _pathfinder(target: LogDensity, generator: torch.Generator) -> Normal:
    """Pathfinder's normal of largest ELBO over several paths."""
    starts = starting_points(target, STARTS, generator)
    results = [pathfinder(target, path, generator) for path in follow_paths(target, starts)]
    normals = [result for result in results if result is not None]
    if not normals:
        raise ValueError(
            "method='pathfinder': no path gave a positive definite inverse Hessian. Use "
            "method='auto'."
        )
    return max(normals, key=lambda result: result[1])[0]


def _start(target: LogDensity, generator: torch.Generator) -> Normal:
    paths = follow_paths(target, starting_points(target, STARTS, generator))
    return distinct_normals(target, paths, generator)[0][0]


def _batch_and_match(target: LogDensity, generator: torch.Generator) -> Normal:
    return batch_and_match(target, _start(target, generator), generator)


def _dadvi(target: LogDensity, generator: torch.Generator) -> Normal:
    try:
        return dadvi(target, _start(target, generator), generator).normal
    except LinAlgError:
        raise ValueError(
            "method='dadvi': the objective has no strict maximum, as where the posterior is "
            "improper or a latent is not identified. Use method='auto', which names it."
        ) from None


FEW_VALUES = ("laplace", "dadvi")  # methods that keep all covariances

NORMALS: dict[str, Callable[[LogDensity, torch.Generator], Normal]] = {
    "laplace": _laplace,
    "pathfinder": _pathfinder,
    "batch_and_match": _batch_and_match,
    "dadvi": _dadvi,
}
