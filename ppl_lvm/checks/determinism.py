"""Does the program do the same again, and is its randomness all torch's?"""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns, run
from ppl_lvm.programs.dry_run import dry_run

# A branch that one run in two takes goes unseen by all of these one time in 32.
_SEEDS = (2, 3, 4, 5, 6)


def check_repeats(look: TrialRuns) -> Iterator[Issue]:
    for program, one in zip(look.programs, (look.model, look.guide), strict=True):
        with dry_run(program):
            first = run(program, *look.batch, seed=1)
        with dry_run(program):
            again = run(program, *look.batch, seed=1)
        with dry_run(program):
            other = _with_other_numpy(program, *look.batch, seed=1)
        if first.error or again.error or other.error:
            continue
        if (site := _differing(first, again)) is not None:
            yield _nondeterministic(one, site)
        elif (site := _differing(first, other)) is not None:
            yield _foreign(one, site)
        for seed in _SEEDS:
            with dry_run(program):
                elsewhere = run(program, *look.batch, seed=seed)
            if not elsewhere.error and _structure(first) != _structure(elsewhere):
                yield _varies(one, first, elsewhere)
                break
        for file, line in sorted(set(one.concrete)):
            yield Issue(
                "item",
                "note",
                None,
                "A line turns a tensor into a Python number or branches on it.",
                "The engine cannot capture such a step; it falls back to plain Pyro, slower.",
                "Use torch.where, indexing or masks in place of .item() and if.",
                file,
                line,
            )


class _OtherSeeds:
    """Lets torch be seeded as told, NumPy and Python differently."""

    def __init__(self, program: Any) -> None:
        self._program = program

    def __call__(self, *batch: Any) -> Any:
        np.random.seed(987654321)
        random.seed(987654321)
        return self._program(*batch)


def _with_other_numpy(program: Any, *batch: Any, seed: int) -> TrialRun:
    return run(_OtherSeeds(program), *batch, seed=seed)


def _differing(one: TrialRun, other: TrialRun) -> str | None:
    """The first site whose value or density differs between two runs."""
    theirs = other.nodes()
    for name, node in one.nodes().items():
        if name not in theirs:
            return name
        if not _same(node["value"], theirs[name]["value"]):
            return name
        if not _same(density(node, node["value"]), density(theirs[name], node["value"])):
            return name
    return None


def density(node: dict[str, Any], value: Any) -> Any:
    """log p of `value` at a site, or None where it cannot be told."""
    with torch.no_grad():
        try:
            return node["fn"].log_prob(value)
        except (ValueError, RuntimeError, NotImplementedError):
            return None


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, equal_nan=True)
    return a is None or b is None or bool(a == b)


def _structure(one: TrialRun) -> dict[str, Any]:
    assert one.signature is not None
    return {site.name: (site.shape, site.plates) for site in one.signature.sites}


def _nondeterministic(one: TrialRun, site: str) -> Issue:
    return one.finding(
        "non-deterministic",
        "warning",
        site,
        f"{site!r} differs between two runs under one seed.",
        "The program keeps state, or draws from a source no seed reaches: runs cannot be "
        "repeated or resumed.",
        "Draw with pyro.sample, and keep no counters or caches inside the program.",
    )


def _foreign(one: TrialRun, site: str) -> Issue:
    return one.finding(
        "foreign-randomness",
        "warning",
        site,
        f"{site!r} depends on random numbers of NumPy or Python.",
        "They belong to no site, so their density is missing; a captured step would freeze them.",
        "Draw them as a site: pyro.sample(...); or, for noise that is no latent, torch.rand.",
    )


def _varies(one: TrialRun, first: TrialRun, other: TrialRun) -> Issue:
    a, b = _structure(first), _structure(other)
    site = next(iter(a.keys() ^ b.keys()), None) or next(k for k in a if a[k] != b.get(k))
    where = one if site in one.places else other if site in other.places else first
    return where.finding(
        "structure-varies",
        "warning",
        site,
        f"The program's structure varies from run to run: {site!r} is not always there, or not "
        "always of one shape.",
        "Model and guide must take the same branch, and vectorised particles cannot.",
        f"Sample {site!r} always, and choose with torch.where or .mask(...).",
    )
