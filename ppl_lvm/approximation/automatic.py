"""Modes, a normal at the best, and chains.

1. Paths of L-BFGS from several starts; more where they end in different modes.
2. At every mode within reach of the best a normal: Laplace, or Pathfinder where its ELBO is larger,
   improved by batch and match, with its evidence by importance weights.
3. Chains from the best normal, all moved together, until R̂ and the effective sample size are good.
   The normal takes their moments.
4. Where chains of a hierarchical model are not good, all of this in non-centered coordinates.

The verdict is good where the chains mixed and no other mode has a visible share of the evidence.
"""

import torch
from torch import Tensor

from ppl_lvm.approximation.batch_and_match import batch_and_match
from ppl_lvm.approximation.convergence import ChainEvidence, assess
from ppl_lvm.approximation.factored_normal import FactoredNormal
from ppl_lvm.approximation.hamiltonian import HamiltonianChains
from ppl_lvm.approximation.importance import Weighted, weigh
from ppl_lvm.approximation.improper import improper
from ppl_lvm.approximation.laplace import laplace
from ppl_lvm.approximation.moments import normal_of_draws
from ppl_lvm.approximation.noncentered import centered_sites, in_centered_coordinates, noncentered
from ppl_lvm.approximation.normal import MAX_DENSE, DenseNormal, Normal
from ppl_lvm.approximation.pathfinder import pathfinder
from ppl_lvm.approximation.paths import AscentPath, follow_paths
from ppl_lvm.approximation.result import KEPT_DRAWS, Approximation, joined, thinned
from ppl_lvm.approximation.unconstrained import LinAlgError, LogDensity, starting_points

STARTS, MORE_STARTS = 4, 12
SAME_MODE = 0.5  # nats between two ends of one mode, and posterior sd between their places
RIVAL = 10.0  # log evidence below the best at which a mode is left out
VISIBLE_SHARE = 0.01  # of the evidence, that a second mode must not have in a good fit
CHAINS = 64
WARMUP, DRAWS, ROUNDS, FEW_ROUNDS = 20, 64, 5, 2
GROWTH = 1.7  # of the number of draws from round to round
MIXING = 0.25  # effective share of the draws below which chains get another normal


def find_posterior(target: LogDensity, generator: torch.Generator) -> Approximation:
    """The posterior of `target`; see the module's docstring."""
    names = centered_sites(target)
    if not names:
        return find_in_coordinates(target, generator, ROUNDS)
    result = find_in_coordinates(target, generator, FEW_ROUNDS)
    if result.good:
        return result
    other = noncentered(target, names)
    moved = find_in_coordinates(other, generator, ROUNDS)
    if not moved.good and result.r_hat < moved.r_hat:
        return result
    moved.noncentered, moved.evaluations = names, target.evaluations + other.evaluations
    return in_centered_coordinates(moved, target, other, names)


def find_in_coordinates(
    target: LogDensity, generator: torch.Generator, rounds: int
) -> Approximation:
    """The posterior, by at most so many rounds of the chains."""
    modes = find_modes(target, generator)
    evidence = torch.tensor([mode.log_evidence for mode in modes])
    shares = (evidence - evidence.logsumexp(0)).exp()
    visible = int((shares > VISIBLE_SHARE).sum())
    problem = improper(target, modes[0].normal)
    result = _run_chains(target, modes[0], generator, 1 if problem else rounds)
    result.num_modes = max(1, visible)
    if problem:
        result.reasons = [problem]
    elif visible > 1:
        listed = ", ".join(f"{float(s):.2f}" for s in shares[:visible])
        result.reasons.insert(0, f"{visible} modes have the shares {listed} of the evidence")
    return result


def find_modes(target: LogDensity, generator: torch.Generator) -> list[Weighted]:
    """Normals at the modes, the largest evidence first."""
    paths = follow_paths(target, starting_points(target, STARTS, generator))
    normals = distinct_normals(target, paths, generator)
    if len(normals) > 1:
        paths += follow_paths(target, starting_points(target, MORE_STARTS, generator))
        normals = distinct_normals(target, paths, generator)
    modes = [
        weigh(target, batch_and_match(target, normal, generator), generator)
        for normal, evidence in normals
        if evidence > normals[0][1] - RIVAL
    ]
    separate: list[Weighted] = []
    for mode in sorted(modes, key=lambda mode: -mode.log_evidence):
        if not any(_overlap(mode.normal, other.normal) for other in separate):
            separate.append(mode)
    return separate


def distinct_normals(
    target: LogDensity, paths: list[AscentPath], generator: torch.Generator
) -> list[tuple[Normal, float]]:
    """Normals at different ends of paths, with rough log evidences, the largest first."""
    normals: list[tuple[Normal, float, float]] = []
    for path in sorted(paths, key=lambda p: -float(p.values[-1])):
        value = float(path.values[-1])
        if any(_same(normal, value, other, path.mode) for normal, _, other in normals):
            continue
        normals.append((*_at_mode(target, path, generator), value))
    return sorted([(n, e) for n, e, _ in normals], key=lambda entry: -entry[1])


def _overlap(a: Normal, b: Normal) -> bool:
    """True if two normals are of one mode: their centers are less than one sd apart."""
    return min(_distance(a, b.loc), _distance(b, a.loc)) < 1


def _distance(normal: Normal, point: Tensor) -> float:
    """Root mean square of the coordinates of a point in which the normal is a standard one."""
    return float(normal.standardized(point.unsqueeze(0)).square().mean().sqrt())


def _same(normal: Normal, value: float, other: float, mode: Tensor) -> bool:
    """True if a path ends at the mode of a normal, whose ℓ is `other`."""
    return _distance(normal, mode) < SAME_MODE and abs(value - other) < SAME_MODE


def _at_mode(
    target: LogDensity, path: AscentPath, generator: torch.Generator
) -> tuple[Normal, float]:
    """The better of Laplace's and Pathfinder's normals by their ELBOs, and its log evidence.

    Of many values Pathfinder's.
    """
    rough = pathfinder(target, path, generator)
    if target.dim > MAX_DENSE:
        unit = torch.ones(target.dim, dtype=target.dtype)
        return rough or (FactoredNormal.diagonal(path.mode, unit), float(path.values[-1]))
    scale = torch.ones(target.dim, dtype=target.dtype) if rough is None else rough[0].sd
    try:
        normal, evidence = laplace(target, path.mode, scale)
    except LinAlgError:  # the path ends at the edge of the space: there is no mode
        if rough is not None:
            return rough
        unit = torch.eye(target.dim, dtype=target.dtype)
        return DenseNormal(path.points[0], unit), float(path.values[0])
    if rough is not None:
        u = normal.sample(32, generator)
        elbo = float((target(u)[0] - normal.log_prob(u)).mean())
        if not elbo > rough[1]:
            return rough
    return normal, float(evidence)


def _run_chains(
    target: LogDensity, mode: Weighted, generator: torch.Generator, rounds: int
) -> Approximation:
    """Chains from a mode until they are good, and the normal of their moments.

    A round continues the chains of the last, or, where these did not mix, starts from them with
    the normal of their moments.
    """
    points, normal, draws = mode.resampled(CHAINS, generator), mode.normal, DRAWS
    blocks: list[Tensor] = []
    for _ in range(rounds):
        if not blocks:
            sampler = HamiltonianChains(target, normal, points, generator)
        warmup = 0 if blocks else WARMUP
        if target.dim > MAX_DENSE:  # memory: the draws of this round alone, as many as of the first
            blocks = [sampler.run(draws, warmup=warmup, every=draws // DRAWS).draws[-DRAWS:]]
        else:
            blocks.append(sampler.run(draws, warmup=warmup).draws)
        chains = torch.cat(blocks).transpose(0, 1)  # (C, T, D)
        evidence = _assess(target, chains)
        try:
            normal = normal_of_draws(target, joined(chains), normal)
        except LinAlgError:  # chains that have not moved
            normal = mode.normal
        if evidence.enough:
            break
        if not evidence.ess.min() > MIXING * min(KEPT_DRAWS, CHAINS * chains.shape[1]):
            points, blocks = sampler.points, []
        draws = int(draws * GROWTH)
    weighted = weigh(target, normal, generator)
    best = min((weighted, mode), key=lambda each: each.k_hat)
    return Approximation(
        "auto",
        normal,
        chains,
        weighted.log_weights,
        best.log_evidence,
        weighted.k_hat,
        target.evaluations,
        float(evidence.r_hat.max()),
        float(evidence.ess.min()),
        reasons=evidence.reasons,
    )


def _assess(target: LogDensity, chains: Tensor) -> ChainEvidence:
    sparse = thinned(chains)
    return assess(target.constrain(joined(sparse)), sparse, target.sites)
