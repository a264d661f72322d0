"""Comparability of runs: same rows, same kind of likelihood.

log p(x) of a row of counts, the density of a row of measurements, log p(y | x) of its last column
and log p(counts | their sum) are all nats per row. But the first and the third are logarithms of
probabilities of different events, and a density has a unit: a narrow density at whole numbers
exceeds every probability.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_factor
from torch import Tensor

from ppl_lvm.core.distributions import innermost
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.types import Program
from ppl_lvm.particles.tracing import is_scored
from ppl_lvm.runs.run import Run


class NotComparableError(ValueError):
    """The log-likelihoods of two runs are of different quantities."""


@dataclass(frozen=True, kw_only=True)
class LikelihoodKind:
    """The observed values of a row to which a model gives a likelihood.

    Attributes:
        discrete, continuous: the values with a probability and those with a density.
        condition: the condition on the values themselves, as the attribute `conditioned_on` of
            the distribution names it; empty without one.
    """

    discrete: int
    continuous: int
    condition: str

    def __str__(self) -> str:
        kinds = {"of counts or categories": self.discrete, "of real numbers": self.continuous}
        values = " and ".join(f"{n} {kind}" for kind, n in kinds.items() if n)
        return f"{values or 'none'} a row" + (f" given {self.condition}" if self.condition else "")


def likelihood_kind(model: Program, batch: tuple[Any, ...]) -> LikelihoodKind:
    """The kind of a model's likelihood, from one run on the first row of `batch`."""
    rows = tuple(t[:1] if isinstance(t, Tensor) else t for t in batch)
    with poutine.block(), torch.no_grad():
        sites = poutine.trace(model).get_trace(*rows).nodes.values()
    counts, condition = {True: 0, False: 0}, ""
    for site in sites:
        if site["type"] != "sample" or not site["is_observed"] or site_is_factor(site):
            continue
        if not is_scored(site):
            continue
        fn = site["fn"]
        try:
            counts[bool(fn.support.is_discrete)] += site["value"].numel()
        except NotImplementedError:  # a distribution without a support
            counts[False] += site["value"].numel()
        condition = getattr(innermost(fn), "conditioned_on", "") or condition
    return LikelihoodKind(discrete=counts[True], continuous=counts[False], condition=condition)


def require_same_likelihood(
    runs: Sequence[Run], names: Sequence[str], batches: Sequence[tuple[Tensor, ...]]
) -> None:
    """Refuse runs whose likelihoods are of other values or of another kind.

    Raises:
        NotComparableError: two runs differ; names both likelihoods.
    """
    kinds = []
    for run, batch in zip(runs, batches, strict=True):
        with isolated_rng(0), run.pair.scope():
            kinds.append(likelihood_kind(run.pair.model, batch))
    for name, kind in zip(names, kinds, strict=True):
        if kind != kinds[0]:
            raise NotComparableError(
                f"{names[0]} gives a likelihood to {kinds[0]}, {name} to {kind}: nats of one are "
                "not nats of the other. Compare runs that model the same columns as the same kind "
                "of number."
            )


def check_width(name: str, run: Run, batch: tuple[Tensor, ...]) -> None:
    """Refuse rows of another shape than the training rows.

    Raises:
        ValueError: a shape differs.
    """
    for tensor, example in zip(batch, run.example_rows, strict=False):
        if tensor.shape[1:] != example.shape[1:]:
            raise ValueError(
                f"{name} was fitted to rows of shape {tuple(example.shape[1:])}, these have "
                f"{tuple(tensor.shape[1:])}. Pass rows of that shape as x."
            )


def common_rows(runs: Sequence[Run], names: Sequence[str]) -> Any:
    """The rows that every run held out.

    Raises:
        ValueError: the runs held out other rows, none, or rows that cannot be loaded.
    """
    first = runs[0].record
    for name, run in zip(names, runs, strict=True):
        record = run.record
        if not record["data"]["held_out_rows"]:
            raise ValueError(
                f"{name} held no rows out. Pass rows that no run has seen as x (--data)."
            )
        if record["data"]["fingerprint"] != first["data"]["fingerprint"]:
            raise ValueError(
                f"{name} was fitted to other data than {names[0]}, so their densities are of "
                "different data. Pass x if the data mean the same."
            )
        splits = [(r["data"]["validation"], r["options"]["seed"]) for r in (first, record)]
        if splits[0] != splits[1]:
            raise ValueError(
                f"{name} held out other rows than {names[0]} (validation and seed {splits[1]} "
                f"instead of {splits[0]}). Fit both with the same, or pass rows as x."
            )
    if first["data"]["source"] is None and runs[0].training_data is None:
        raise ValueError(
            f"The rows that {names[0]} held out were in memory and are not kept. Pass them as x: "
            "load_data(…).split(validation, seed)[1]."
        )
    _, held_out = runs[0].data()
    if held_out is None:
        raise ValueError(f"{names[0]} was validated on other data. Pass them as x.")
    return held_out


def distinct_names(runs: Sequence[Run], names: Sequence[str] | None) -> list[str]:
    """The names of the runs, all different.

    Raises:
        ValueError: `runs` is no list of at least two runs, or `names` do not fit.
    """
    if isinstance(runs, Run) or not all(isinstance(run, Run) for run in runs):
        raise ValueError(
            "compare takes a list of runs: compare([run, …]), a run in a directory being "
            "load_run(directory)."
        )
    if len(runs) < 2:
        raise ValueError(
            f"compare needs at least two runs, got {len(runs)}. Pass compare([run, other])."
        )
    distinct = list(names) if names is not None else short_names(runs)
    if len(distinct) != len(runs):
        raise ValueError(f"names: {len(distinct)} for {len(runs)} runs. Pass one for each run.")
    if len(set(distinct)) < len(distinct):
        raise ValueError(
            f"Two runs have the same name: {', '.join(distinct)}. Pass different names."
        )
    return distinct


def short_names(runs: Sequence[Run]) -> list[str]:
    """Directory names, or models' names, numbered where they repeat."""
    plain = [
        run.directory.name if run.directory is not None else str(run.record["model"]["name"])
        for run in runs
    ]
    return [
        name if plain.count(name) == 1 else f"{name} ({plain[: i + 1].count(name)})"
        for i, name in enumerate(plain)
    ]
