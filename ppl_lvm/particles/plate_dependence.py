"""Dependence between members of plates, and outside of them.

It is the dependence of the operations and not of values: a draw that is rarely one, or a weight
that begins at zero, changes no value in a few runs.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import is_point
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Program
from ppl_lvm.particles.dependence import FollowDependence, row_labels
from ppl_lvm.particles.tracing import (
    ReplayValues,
    Sites,
    is_scored,
    plate_dim,
    plate_frames,
    tempered_log_prob,
    trace_program,
)
from ppl_lvm.programs.row_plates import row_plates

Run = Callable[[], tuple[Sites, Sites]]

_UNFOLLOWED = (RuntimeError, NotImplementedError, TypeError)  # of operations without a rule


def run_plainly(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Sites, Sites]:
    """Sites of one guide run and of the model replayed on it."""
    guide_sites = trace_program(guide, args, kwargs, particles=None, nesting=0)
    replay = ReplayValues({name: site["value"] for name, site in guide_sites.items()})
    model_sites = trace_program(model, args, kwargs, particles=None, nesting=0, replay=replay)
    return guide_sites, model_sites


def repeated_run(run: Run, first: tuple[Sites, Sites]) -> Run:
    """A function that runs the pair with the subsamples of its first run."""
    subsamples = {
        n: s["value"] for sites in first for n, s in sites.items() if site_is_subsample(s)
    }

    def again() -> tuple[Sites, Sites]:
        with ReplayValues(subsamples):
            return run()

    return again


def dependence_outside(
    run: Run, candidates: list[str], enumerated: list[str], plate: str
) -> str | None:
    """Why the weights are joint: a site outside the plate depends on draws; None if none does."""
    name = _dependent_site(run, candidates, None)
    if name is None:
        return None
    if enumerated and _dependent_site(run, candidates, enumerated) is not None:
        raise ValueError(
            f"Site '{name}' outside {plate} depends on {_quoted(enumerated)}, summed out "
            f"row by row. Put '{name}' inside the plate, or sample {_quoted(enumerated)} in the "
            "guide."
        )
    return f"site '{name}' outside {plate} depends on the draws"


def unaffected_terms(run: Run, name: str, draws: Collection[str]) -> frozenset[tuple[str, str]]:
    """("guide" or "model", site) of the log-densities that no value of draw `name` changes.

    Those of later draws of the guide that depend on it, in a chain of `draws`, count as changed.
    """
    changed, pending = set(), [name]
    terms: set[tuple[str, str]] = set()
    while pending:
        draw = pending.pop()
        try:
            with follow_draws(only={draw}) as dependence:
                for role, sites in zip(("guide", "model"), run(), strict=True):
                    for site in (s for s in sites.values() if is_scored(s)):
                        key = role, site["name"]
                        terms.add(key)
                        log_p = tempered_log_prob(site)
                        if dependence.is_unknown:
                            return frozenset()
                        if key in changed or dependence.labels(log_p) is None:
                            continue
                        changed.add(key)
                        if role == "guide" and site["name"] in draws and site["name"] != draw:
                            pending.append(site["name"])
        except _UNFOLLOWED:
            return frozenset()
    return frozenset(terms - changed)


class LabelDraws(Messenger):
    """Label random draws: alike, or along the dimension `dim(site)`; with None those are unlabeled.

    Points (Delta sites), replayed and enumerated values are no random draws.
    """

    def __init__(
        self,
        dependence: FollowDependence,
        dim: Callable[[Any], int | None] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        self.dependence, self.dim, self.only = dependence, dim, only
        self._pending: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        known = msg["is_observed"] or msg["done"] or not is_scored(msg) or is_point(msg["fn"])
        if not known and (self.only is None or msg["name"] in self.only):
            self._pending.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.dependence.is_unknown:
            self.dependence.after_unknown.add(msg["name"])
        if msg["name"] not in self._pending:
            return
        self._pending.discard(msg["name"])
        if self.dim is None:
            self.dependence.label(msg["value"])
        elif (dim := self.dim(msg)) is None:
            self.dependence.label(msg["value"], torch.zeros(()))
        else:
            axis = dim - msg["fn"].event_dim
            self.dependence.label(msg["value"], row_labels(msg["value"].shape[axis], axis))


@contextmanager
def follow_draws(
    dim: Callable[[Any], int | None] | None = None, only: Collection[str] | None = None
) -> Iterator[FollowDependence]:
    """A scope in which random draws are labeled (`LabelDraws`) and their labels followed."""
    dependence = FollowDependence()
    # Validation would make decisions of draws.
    with pyro.validation_enabled(False), dependence, LabelDraws(dependence, dim, only):
        yield dependence


def _dependent_site(run: Run, candidates: list[str], only: Collection[str] | None) -> str | None:
    """The first candidate that depends on a random draw (of the sites `only`), or None."""
    try:
        with follow_draws(only=only) as dependence:
            for sites in run():
                for name in [n for n in candidates if n in sites]:
                    unknown = dependence.is_unknown
                    parts = (tempered_log_prob(sites[name]), sites[name]["value"])
                    unknown = dependence.is_unknown and not unknown  # by this density
                    if unknown or name in dependence.after_unknown:
                        return name
                    if any(dependence.labels(p) is not None for p in parts):
                        return name
    except _UNFOLLOWED:
        return candidates[0]
    return None


def mixed_plates(
    run: Run, plates: list[frozenset[str]], enumerated: list[str]
) -> dict[str, tuple[str, str]]:
    """Those of `plates` whose members are not independent (`PairStructure.mixed`).

    Plates of one set have the same members, such as the plates over rows.

    Raises:
        ValueError: a site depends on values of other members that are summed out.
    """
    mixed: dict[str, tuple[str, str]] = {}
    for plate in plates:
        site = _mixed_site(run, plate, None)
        if site is None:
            continue
        if enumerated and _mixed_site(run, plate, enumerated) is not None:
            raise ValueError(
                f"Site '{site[1]}' in one row of plate {_quoted(plate)} depends on "
                f"{_quoted(enumerated)} in other rows, summed out row by row. Sample it in the "
                "guide, or write the rows as steps of pyro.markov."
            )
        mixed |= dict.fromkeys(sorted(plate), site)
    return mixed


def _mixed_site(
    run: Run, plate: Collection[str], only: Collection[str] | None
) -> tuple[str, str] | None:
    try:
        with follow_draws(lambda site: plate_dim(site, plate), only) as dependence:
            for role, sites in zip(("guide", "model"), run(), strict=True):
                for name, site in sites.items():
                    if plate_dim(site, plate) is None or not is_scored(site):
                        continue
                    labels = dependence.labels(tempered_log_prob(site))
                    if _depends_on_others(labels, site, plate):
                        return role, name
    except _UNFOLLOWED:
        return None  # the plate declares that rows are independent
    return None


def sums_over_rows(model: Program, guide: Program, batch: tuple[Any, ...]) -> bool:
    """True if the log-densities of a pair without random draws are a sum over rows.

    Points and enumerated sites are no random draws. Sites inside the plates over rows then depend
    on one row of data and on its latents alone, those outside on no row. A scale that depends on
    the number of rows is no dependence.
    """
    batch = tuple(part.clone() if isinstance(part, Tensor) else part for part in batch)
    try:
        plates = row_plates(model, guide, batch=batch).names
        with (
            preserve_rng(),
            torch.no_grad(),
            follow_draws(lambda s: plate_dim(s, plates)) as labels,
        ):
            for part in (part for part in batch if isinstance(part, Tensor) and part.dim()):
                labels.label(part, row_labels(len(part), -part.dim()))
            for sites in run_plainly(model, guide, batch, {}):
                if labels.is_unknown:
                    return False
                for site in filter(is_scored, sites.values()):
                    is_draw = not (site["is_observed"] or is_point(site["fn"]))
                    if is_draw and plate_dim(site, plates) is None:
                        return False
                    if _depends_on_others(labels.labels(tempered_log_prob(site)), site, plates):
                        return False
    except (*_UNFOLLOWED, ValueError, IndexError, KeyError):  # at another number of rows
        return False
    return not labels.is_unknown


def _depends_on_others(labels: Tensor | None, site: Any, plates: Collection[str]) -> bool:
    """True if a density depends on rows of `plates` that are not its own."""
    dim = plate_dim(site, plates)
    if labels is None or dim is None:
        return labels is not None
    rows = next(f.size for f in plate_frames(site) if f.name in plates)
    return bool(((labels != 0) & (labels != row_labels(rows, dim).to(labels.device))).any())


def _quoted(names: Collection[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))
