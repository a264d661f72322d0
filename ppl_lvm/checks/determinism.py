"""Check that programs are deterministic under a seed."""

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns, run_program
from ppl_lvm.programs.dry_run import dry_run

# All of these miss a branch of probability 1/2 once in 32 times.
_SEEDS = (2, 3, 4, 5, 6)
ROUNDING = 1e-5  # of the largest value
DENSITY_ROUNDING = 1e-4  # nats


def check_repeats(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """Sites that differ under one seed, foreign randomness, varying structure, `.item()`."""
    for program, trial in zip(runs.programs, (runs.model, runs.guide), strict=True):
        with dry_run(program):
            first = run_program(program, *runs.batch, seed=1)
        with dry_run(program):
            second = run_program(program, *runs.batch, seed=1)
        with dry_run(program):
            other = _with_other_numpy(program, *runs.batch, seed=1)
        if first.error or second.error or other.error:
            continue
        if (site := _differing(first, second)) is not None:
            yield _nondeterministic(trial, site)
        elif (site := _differing(first, other)) is not None:
            yield _foreign(trial, site)
        for seed in _SEEDS:
            with dry_run(program):
                reseeded = run_program(program, *runs.batch, seed=seed)
            if not reseeded.error and _structure(first) != _structure(reseeded):
                yield _varies(trial, first, reseeded)
                break
        for file, line in sorted(set(trial.concrete)):
            yield Issue(
                "item",
                "note",
                None,
                "A line converts a tensor to a Python number or branches on it.",
                "Such a step cannot be captured; it runs in plain Pyro, which is slower.",
                "Use torch.where, indexing or masks in place of .item() and if.",
                file,
                line,
            )


class _OtherSeeds:
    """The program with other seeds of NumPy and Python."""

    def __init__(self, program: Any) -> None:
        self._program = program

    def __call__(self, *batch: Any) -> Any:
        np.random.seed(987654321)
        random.seed(987654321)
        return self._program(*batch)


def _with_other_numpy(program: Any, *batch: Any, seed: int) -> TrialRun:
    return run_program(_OtherSeeds(program), *batch, seed=seed)


def _differing(trial: TrialRun, other: TrialRun) -> str | None:
    """The first site whose value or density differs between two runs."""
    others = other.nodes()
    for name, node in trial.nodes().items():
        if name not in others:
            return name
        if not _same(node["value"], others[name]["value"]):
            return name
        one, another = (density(n, node["value"]) for n in (node, others[name]))
        if not _same(one, another, rounding=DENSITY_ROUNDING):
            return name
    return None


def density(node: dict[str, Any], value: Any) -> Any:
    """log p of `value` at a site, or None where it is not defined."""
    with torch.no_grad():
        try:
            return node["fn"].log_prob(value)
        except (ValueError, RuntimeError, NotImplementedError):
            return None


def _same(a: Any, b: Any, rounding: float = 0.0) -> bool:
    """True for values that are equal to rounding, which depends on where tensors lie in memory."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.is_floating_point() and a.numel():
            rounding = max(rounding, ROUNDING * float(a.detach().nan_to_num(0, 0, 0).abs().max()))
        same = partial(torch.allclose, atol=rounding, equal_nan=True)
        return a.shape == b.shape and a.dtype == b.dtype and same(a, b)
    return a is None or b is None or bool(a == b)


def _structure(trial: TrialRun) -> dict[str, Any]:
    assert trial.signature is not None
    return {site.name: (site.shape, site.plates) for site in trial.signature.sites}


def _nondeterministic(trial: TrialRun, site: str) -> Issue:
    return trial.issue(
        "non-deterministic",
        "warning",
        site,
        f"{site!r} differs between two runs under one seed.",
        "The program keeps state, or draws from a source without a seed: runs cannot be "
        "repeated or resumed.",
        "Draw with pyro.sample, and keep no counters or caches inside the program.",
    )


def _foreign(trial: TrialRun, site: str) -> Issue:
    return trial.issue(
        "foreign-randomness",
        "warning",
        site,
        f"{site!r} depends on random numbers of NumPy or Python.",
        "They belong to no site, so their density is missing; a captured step would fix them.",
        "Draw them as a site: pyro.sample(...); or, for noise that is no latent, torch.rand.",
    )


def _varies(trial: TrialRun, first: TrialRun, other: TrialRun) -> Issue:
    a, b = _structure(first), _structure(other)
    site = next(k for k in {**a, **b} if a.get(k) != b.get(k))
    origin = trial if site in trial.places else other if site in other.places else first
    return origin.issue(
        "structure-varies",
        "warning",
        site,
        f"The program's structure varies between runs: {site!r} does not always exist, or not "
        "always with the same shape.",
        "Model and guide must take the same branch, and vectorized particles cannot.",
        f"Sample {site!r} always, and choose with torch.where or .mask(...).",
    )
