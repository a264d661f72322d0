"""May these runs be compared? They must be judged on the same rows, and speak of the same numbers.

log p(x) of a row of counts, the density of a row of measurements, log p(y | x) of its last column
and log p(counts | their sum) are all nats per row. The first and the third are logarithms of
probabilities of different things, and a density has a unit: a narrow one at whole numbers beats
every probability.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_factor
from torch import Tensor

from ppl_lvm.core.distributions import innermost
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.particles.structure import Program
from ppl_lvm.particles.tracing import is_scored

if TYPE_CHECKING:
    from ppl_lvm.runs.run import Run


class NotComparableError(ValueError):
    """The log-likelihoods of two runs are not of the same thing."""


@dataclass(frozen=True)
class LikelihoodKind:
    """Attributes:
    discrete, continuous: how many numbers of a row have a probability, and a density.
    given: what is taken as given of the numbers themselves, as `given` of a distribution says.
    """

    discrete: int
    continuous: int
    given: str

    def __str__(self) -> str:
        kinds = {
            "of counts or categories": self.discrete,
            "of real numbers": self.continuous,
        }
        many = " and ".join(f"{n} {kind}" for kind, n in kinds.items() if n)
        return f"{many or 'none'} a row" + (f" given {self.given}" if self.given else "")


def scored(model: Program, batch: tuple[Any, ...]) -> LikelihoodKind:
    """What `model` gives a likelihood to, from one run on the first row of `batch`."""
    rows = tuple(t[:1] if isinstance(t, Tensor) else t for t in batch)
    with poutine.block(), torch.no_grad():
        sites = poutine.trace(model).get_trace(*rows).nodes.values()
    counts, given = {True: 0, False: 0}, ""
    for site in sites:
        if site["type"] != "sample" or not site["is_observed"] or site_is_factor(site):
            continue
        if not is_scored(site):
            continue
        fn = site["fn"]
        try:
            counts[bool(fn.support.is_discrete)] += site["value"].numel()
        except NotImplementedError:  # a distribution that does not say where it lives
            counts[False] += site["value"].numel()
        given = getattr(innermost(fn), "given", "") or given
    return LikelihoodKind(counts[True], counts[False], given)


def require_same_likelihood(
    runs: "Sequence[Run]", names: Sequence[str], batches: Sequence[tuple[Tensor, ...]]
) -> None:
    """Refuse runs whose likelihoods are of different numbers, or of another kind.

    Raises:
        NotComparableError: naming both runs and what each gives a likelihood to.
    """
    found = []
    for run, batch in zip(runs, batches, strict=True):
        with isolated_rng(0), run.pair.scope():
            found.append(scored(run.pair.model, batch))
    for name, other in zip(names, found, strict=True):
        if other != found[0]:
            raise NotComparableError(
                f"{names[0]} gives a likelihood to {found[0]}, {name} to {other}: nats of one are "
                "not nats of the other. Compare runs that model the same columns as the same kind "
                "of number."
            )


def check_width(name: str, run: "Run", batch: tuple[Tensor, ...]) -> None:
    """Refuse rows of another shape than a run was fitted to.

    Raises:
        ValueError: naming the run and both shapes.
    """
    for given, fitted in zip(batch, run.example_rows, strict=False):
        if given.shape[1:] != fitted.shape[1:]:
            raise ValueError(
                f"{name} was fitted to rows of shape {tuple(fitted.shape[1:])}, these have "
                f"{tuple(given.shape[1:])}."
            )


def common_rows(runs: "Sequence[Run]", names: Sequence[str]) -> Any:
    """What every run held out.

    Raises:
        ValueError: where it is not the same, or not at hand; names the run and the remedy.
    """
    first = runs[0].record
    for name, run in zip(names, runs, strict=True):
        own = run.record
        if not own["data"]["held_out_rows"]:
            raise ValueError(
                f"{name} held no rows out. Pass rows that no run has seen as x (--data)."
            )
        if own["data"]["fingerprint"] != first["data"]["fingerprint"]:
            raise ValueError(
                f"{name} was fitted to other data than {names[0]}: their densities are not of the "
                "same thing. Pass x where you know that they are."
            )
        split = [(r["data"]["validation"], r["options"]["seed"]) for r in (first, own)]
        if split[0] != split[1]:
            raise ValueError(
                f"{name} held out other rows than {names[0]} (validation and seed {split[1]} "
                f"instead of {split[0]}). Fit both with the same, or pass rows as x."
            )
    if first["data"]["source"] is None:
        raise ValueError(
            f"The rows that {names[0]} held out were in memory and are not kept. Pass them as x: "
            "load_data(…).split(validation, seed)[1]."
        )
    _, held_out = runs[0].data()
    if held_out is None:
        raise ValueError(f"{names[0]} was validated on data of its own; pass them as x.")
    return held_out


def names_of(runs: "Sequence[Run]", names: Sequence[str] | None) -> list[str]:
    """What the runs are called, each by another name.

    Raises:
        ValueError: for what are no runs, fewer than two, or names that do not suit.
    """
    from ppl_lvm.runs.run import Run

    if isinstance(runs, Run) or not all(isinstance(run, Run) for run in runs):
        raise ValueError(
            "compare takes a list of runs: compare([run, …]), a run in a directory being "
            "load_run(directory)."
        )
    if len(runs) < 2:
        raise ValueError(f"compare needs at least two runs, got {len(runs)}.")
    called = list(names) if names is not None else short_names(runs)
    if len(called) != len(runs):
        raise ValueError(f"{len(called)} names for {len(runs)} runs.")
    if len(set(called)) < len(called):
        raise ValueError(f"Two runs have the same name: {', '.join(called)}. Name each its own.")
    return called


def short_names(runs: "Sequence[Run]") -> list[str]:
    """Directory names, or models' names, numbered where they repeat."""
    plain = [
        run.directory.name if run.directory is not None else str(run.record["model"]["name"])
        for run in runs
    ]
    return [
        name if plain.count(name) == 1 else f"{name} ({plain[: i + 1].count(name)})"
        for i, name in enumerate(plain)
    ]
