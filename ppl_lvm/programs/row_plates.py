"""Plates over the rows of a batch.

A program may give the plate over rows any name ("data", "cells", "batch") and any dimension. It is
the plate of the batch's size B,

    size = B,   or full_size = B where the program draws a subsample of its rows.

Another plate may have as many members by coincidence. So unless the only plate of size B is called
"data", the program runs once more on another number of rows B': the size of a plate over rows is B'
in that run. Several plates may be over rows (one for the latents, one for the observations).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.minibatch import DATA_PLATE, frame_size, num_rows

Sites = Mapping[str, Any]


@dataclass(frozen=True)
class RowPlates:
    """Names of the plates over rows.

    Attributes:
        names: plates whose members are the rows of a batch.
        undecided: plates around the same site that have one member per row each, such as those of
            all pairs of rows. Such sites belong to no single row.
        stated_rows: N where the program states it: `pyro.plate("cells", N, subsample_size=len(x))`.
    """

    names: frozenset[str] = frozenset()
    undecided: frozenset[str] = frozenset()
    stated_rows: int | None = None


_known: ContextVar[RowPlates | None] = ContextVar("row_plates", default=None)


@contextmanager
def known_row_plates(plates: RowPlates | None) -> Iterator[None]:
    """A scope of programs whose row plates are known; None: they are to be found."""
    token = _known.set(plates)
    try:
        yield
    finally:
        _known.reset(token)


def row_plates(
    *programs: Callable[..., Any], batch: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> RowPlates:
    """The row plates of programs called with `batch`: of a model, or of a model and its guide.

    A plate of both programs is judged in the model. Inside `known_row_plates` nothing runs.
    Programs that fail on the batch have the plate "data".
    """
    known = _known.get()
    if known is not None:
        return known
    names: frozenset[str] = frozenset()
    undecided: frozenset[str] = frozenset()
    seen: set[str] = set()
    stated: int | None = None
    with torch.no_grad(), dry_run(*programs, seed=0), poutine.block():
        for program in programs:
            sites = _run(program, batch, kwargs)
            if sites is None:
                names |= {DATA_PLATE} - seen
                continue
            plates = _decide(program, sites, batch, kwargs, frozenset(seen))
            names, undecided = names | plates.names, undecided | plates.undecided
            sizes = _sizes(sites)
            for name in plates.names:
                if sizes[name][0] == num_rows(batch) != sizes[name][1]:
                    stated = sizes[name][1]
            seen |= sizes.keys()
    return RowPlates(names, undecided - names, stated)


def joint_sites(
    program: Callable[..., Any], plates: Collection[str], batch: tuple[Any, ...]
) -> frozenset[str]:
    """Sites outside the row plates whose shape, or existence, depends on the number of rows.

    They hold values of all rows together: a Gaussian process, a time series of one row per step.
    """
    few = torch.arange(3) % max(num_rows(batch) or 1, 1)
    with torch.no_grad(), dry_run(program, seed=0), poutine.block():
        more = _run(program, select_rows(batch, few), None)
        fewer = _run(program, select_rows(batch, few[:2]), None)
    if more is None or fewer is None:
        return frozenset()
    return frozenset(
        name
        for name, site in more.items()
        if not is_row_site(site, plates)
        and (name not in fewer or site["value"].shape != fewer[name]["value"].shape)
    )


def is_row_site(site: Mapping[str, Any], plates: Collection[str]) -> bool:
    """True inside one of the plates: the site has one value per row."""
    return any(frame.name in plates for frame in site["cond_indep_stack"])


def select_rows(batch: tuple[Any, ...], index: Tensor) -> tuple[Any, ...]:
    """The batch with rows `index` of every tensor of B rows."""
    B = num_rows(batch)
    return tuple(
        part[index.to(part.device)]
        if isinstance(part, Tensor) and part.dim() and len(part) == B
        else part
        for part in batch
    )


def _decide(
    program: Callable[..., Any],
    sites: Sites,
    batch: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    seen: frozenset[str],
) -> RowPlates:
    """The row plates of one program, without those in `seen`."""
    sizes = {name: pair for name, pair in _sizes(sites).items() if name not in seen}
    B = num_rows(batch)
    candidates = {name for name, pair in sizes.items() if B in pair}
    habit = frozenset(sizes.keys() & {DATA_PLATE})
    if not B or candidates <= {DATA_PLATE}:
        return RowPlates(habit)
    # Fewer rows where possible: a table of parameters has no entry for one more.
    index = torch.arange(B - 1) if B > 2 else torch.arange(B + 1) % B
    other = _run(program, select_rows(batch, index), kwargs)
    chosen = _following(sizes, other, candidates, B, len(index))
    chosen = chosen or {n for n in candidates if sizes[n][0] < sizes[n][1] == B}
    chosen = chosen or _observing(sites, other, candidates, B)
    if not chosen and _is_bound(sites, other):
        chosen = candidates
        if len(chosen) > 1:
            chosen = _aligned(sites, chosen, batch) or chosen & habit
        if not chosen:
            return RowPlates(frozenset(), frozenset(candidates))
    nested = _nested(sites, chosen)
    return RowPlates(frozenset(chosen - nested) or habit - nested, frozenset(nested))


def _following(
    sizes: Mapping[str, tuple[int, int]], other: Sites | None, names: set[str], B: int, count: int
) -> set[str]:
    """The plates whose size, or full size, is B on B rows and `count` on `count` rows."""
    after = {} if other is None else _sizes(other)
    return {
        name
        for name in names & after.keys()
        if (B, count) in zip(sizes[name], after[name], strict=True)
    }


def _observing(sites: Sites, other: Sites | None, names: set[str], B: int) -> set[str]:
    """The plates of a fixed size in which fewer values are observed on fewer rows."""
    observing = set()
    for name, site in sites.items():
        if other is None or name not in other or not site["is_observed"] or site_is_factor(site):
            continue
        before, after = site["value"].shape, other[name]["value"].shape
        for frame in site["cond_indep_stack"]:
            axis = -1 if frame.dim is None else frame.dim - site["fn"].event_dim
            within = frame.dim is not None and len(before) >= -axis <= len(after)
            if frame.name in names and within and before[axis] == B != after[axis]:
                observing.add(frame.name)
    return observing


def _is_bound(sites: Sites, other: Sites | None) -> bool:
    """True of a program that does not run on other rows, or does not depend on their number."""
    return other is None or all(
        site["value"].shape == other[name]["value"].shape
        for name, site in sites.items()
        if name in other
    )


def _run(
    program: Callable[..., Any], batch: tuple[Any, ...], kwargs: Mapping[str, Any] | None
) -> Sites | None:
    """Sample sites of one run; None if it fails."""
    try:
        nodes = poutine.trace(program).get_trace(*batch, **(kwargs or {})).nodes
    except Exception:  # any exception of a user's program; its other runs will show it
        return None
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def _sizes(sites: Sites) -> dict[str, tuple[int, int]]:
    """Plate -> its size in the run, and the size it stands for."""
    sizes: dict[str, tuple[int, int]] = {}
    for site in sites.values():
        for frame in site["cond_indep_stack"]:
            size = max(frame_size(site, frame), sizes.get(frame.name, (0, 0))[0])
            full = frame.full_size if frame.full_size not in (None, -1) else size
            sizes[frame.name] = size, max(int(full), size)
    return sizes


def _nested(sites: Sites, names: Collection[str]) -> set[str]:
    """Those of the plates that stand around one site together."""
    nested: set[str] = set()
    for site in sites.values():
        around = {frame.name for frame in site["cond_indep_stack"]} & set(names)
        if len(around) > 1:
            nested |= around
    return nested


def _aligned(sites: Sites, names: Collection[str], batch: tuple[Any, ...]) -> set[str]:
    """Those of the plates at the first dimension of an argument that a site observes."""
    aligned = set()
    for site in sites.values():
        if site["is_observed"] and any(site["value"] is part for part in batch):
            dim = site["fn"].event_dim - site["value"].dim()
            frames = site["cond_indep_stack"]
            aligned |= {frame.name for frame in frames if frame.dim == dim} & set(names)
    return aligned
