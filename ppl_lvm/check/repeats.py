"""Does the program do the same again, and is its randomness all torch's?"""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.check.findings import Finding
from ppl_lvm.check.look import Look, Run, rows, run
from ppl_lvm.dry_run import dry_run

# A branch that one run in two takes goes unseen by all of these one time in 32.
_SEEDS = (2, 3, 4, 5, 6)


def check_repeats(look: Look) -> Iterator[Finding]:
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
            yield Finding(
                "item",
                "note",
                None,
                "A line turns a tensor into a Python number or branches on it.",
                "The engine cannot capture such a step; it falls back to plain Pyro, slower.",
                "Use torch.where, indexing or masks in place of .item() and if.",
                file,
                line,
            )
    yield from _order(look)


class _OtherSeeds:
    """Lets torch be seeded as told, NumPy and Python differently."""

    def __init__(self, program: Any) -> None:
        self._program = program

    def __call__(self, *batch: Any) -> Any:
        np.random.seed(987654321)
        random.seed(987654321)
        return self._program(*batch)


def _with_other_numpy(program: Any, *batch: Any, seed: int) -> Run:
    return run(_OtherSeeds(program), *batch, seed=seed)


def _differing(one: Run, other: Run) -> str | None:
    """The first site whose value or density differs between two runs."""
    theirs = other.nodes()
    for name, node in one.nodes().items():
        if name not in theirs:
            return name
        if not _same(node["value"], theirs[name]["value"]):
            return name
        if not _same(_density(node, node["value"]), _density(theirs[name], node["value"])):
            return name
    return None


def _density(node: dict[str, Any], value: Any) -> Any:
    with torch.no_grad():
        try:
            return node["fn"].log_prob(value)
        except (ValueError, RuntimeError, NotImplementedError):
            return None


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, equal_nan=True)
    return a is None or b is None or bool(a == b)


def _structure(one: Run) -> dict[str, Any]:
    assert one.signature is not None
    return {site.name: (site.shape, site.plates) for site in one.signature.sites}


def _nondeterministic(one: Run, site: str) -> Finding:
    return one.finding(
        "non-deterministic",
        "warning",
        site,
        f"{site!r} differs between two runs under one seed.",
        "The program keeps state, or draws from a source no seed reaches: runs cannot be "
        "repeated or resumed.",
        "Draw with pyro.sample, and keep no counters or caches inside the program.",
    )


def _foreign(one: Run, site: str) -> Finding:
    return one.finding(
        "foreign-randomness",
        "warning",
        site,
        f"{site!r} depends on random numbers of NumPy or Python.",
        "They belong to no site, so their density is missing; a captured step would freeze them.",
        "Draw them as a site: pyro.sample(...); or, for noise that is no latent, torch.rand.",
    )


def _varies(one: Run, first: Run, other: Run) -> Finding:
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


def _order(look: Look) -> Iterator[Finding]:
    """Turn the rows around: a datum's density must turn with it, unless it depends on position."""
    guide, B = look.guide, rows(look.batch)
    if B is None or B < 2 or guide.signature is None:
        return
    local = [site for site in guide.signature.sites if site.local]
    if not local or any(site.plates[-1:] != ("data",) for site in local):
        return
    turned = tuple(
        part.flip(0) if isinstance(part, Tensor) and part.dim() and len(part) == B else part
        for part in look.batch
    )
    with dry_run(look.programs[1]), torch.no_grad():
        backwards = run(look.programs[1], *turned)
    with dry_run(look.programs[1]), torch.no_grad():
        elsewhere = run(look.programs[1], *look.batch, seed=3)
    if backwards.error is not None or elsewhere.error is not None:
        return
    there, back, noisy = guide.nodes(), backwards.nodes(), elsewhere.nodes()
    for site in local:
        if site.name not in back or len(site.batch_shape) != 1:
            continue
        value = there[site.name]["value"]
        same = _density(there[site.name], value), _density(back[site.name], value.flip(0))
        again = _density(noisy.get(site.name, there[site.name]), value)
        if any(density is None for density in (*same, again)) or site.distribution == "Delta":
            continue
        if not torch.allclose(same[0], again):
            continue  # parameters that are random themselves (dropout) cannot be compared so
        if not torch.allclose(same[0], same[1].flip(0), rtol=1e-3, atol=1e-3):
            yield guide.finding(
                "batch-order",
                "warning",
                site.name,
                f"The guide's {site.name!r} depends on where in the batch a row stands.",
                "In shuffled mini-batches a row's parameters would be another row's.",
                "Compute them from the row itself, as AmortizedNormal does, or train on all rows "
                "at once and unshuffled.",
            )
