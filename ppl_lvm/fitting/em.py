"""Expectation-maximisation, for models that offer its two steps.

With parameters θ and the statistics T that the complete data's likelihood depends on,

    E    T̄(θ) = Σ_n E[ T(x_n, z) | x_n, θ ],    L(θ) = Σ_n log p(x_n | θ),
    M    θ' = argmax_θ' E[ log p(x, z | θ') | x, θ ], a function of θ and T̄,

and L(θ') ≥ L(θ). T̄ and L are sums over rows. So data larger than memory are read batch by batch,
and processes that hold different rows (torch.distributed) add up their sums. Restarts are one
more leading dimension of θ, made by `torch.vmap`: a model writes its steps for one start.

    fit_em -> batch (all rows an iteration) or online (an M-step a mini-batch) -> sums
    -> the model's two steps;  run: what a fit leaves behind

Reference:
    Dempster, Laird, Rubin (1977). Maximum likelihood from incomplete data via the EM algorithm.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch

from ppl_lvm.core import distributed as processes
from ppl_lvm.data import Data, load_data
from ppl_lvm.data.selection import initialization_rows, split_validation
from ppl_lvm.fitting.em_run import Outcome, as_run, record
from ppl_lvm.programs.exact_posterior import ExactPosterior
from ppl_lvm.programs.pair import copy_programs
from ppl_lvm.programs.sources import GuideFactory, ModelFactory
from ppl_lvm.runs.directory import open_run_directory
from ppl_lvm.runs.run import Run
from ppl_lvm.training.em.batch import EM, NotMonotoneError
from ppl_lvm.training.em.online import OnlineEM
from ppl_lvm.training.em.protocol import EMModel
from ppl_lvm.training.em.statistics import READ_ROWS, State, Sums
from ppl_lvm.training.iterate import iterate_with_checkpoints

__all__ = ["EM", "EMModel", "ExactPosterior", "NotMonotoneError", "fit_em"]

ONLINE_PASSES, ONLINE_ROWS = 10, 256


@dataclass
class _EMOptions:
    """What was asked of the iterations."""

    max_iterations: int
    tolerance: float
    batch_size: int
    decay: float | None
    checkpoint: Path | None
    checkpoint_seconds: float


def fit_em(
    model: Any,
    data: Any,
    *,
    max_iterations: int | None = None,
    tolerance: float = 1e-6,
    batch_size: int | None = None,
    decay: float | None = None,
    validation: Any = None,
    restarts: int = 1,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    guide: Any = None,
    directory: str | Path | None = None,
    checkpoint_seconds: float = 10.0,
    resume: bool = False,
) -> Run:
    """Fit a model by expectation-maximisation. Works on a copy of the model.

    Args:
        model: an `EMModel`, a class of such or its address.
        data: see `load_data`. Missing values (NaN) are the model's business: load them with
            `load_data(source, missing="keep")`.
        max_iterations: passes over the data at most (default: 1,000; online exactly so many, 10).
        tolerance: stop when less than this lies ahead, in nats per row, by the rate at which
            gains shrink. Online EM does not judge itself.
        batch_size: rows read at once (default: 65,536), on which the result does not depend; of
            online EM, rows a step (default: 256).
        decay: None: every iteration sees all rows. Else online EM with step sizes
            (1 + t)^-decay, ½ < decay ≤ 1 (0.6 is a good one): for data so large that a few passes
            over them must do. See `ppl_lvm.training.em.online`.
        validation: rows to hold out (an int), a fraction of them, or data of its own: their
            log-likelihood is noted, and the best restart is best in it.
        restarts: starts with seeds seed, seed + 1, …, iterated together; the most likely is kept
            that the model does not call degenerate. A model without `initialize` has one start.
        seed: of the starts, of the rows held out and of online EM's mini-batches.
        settings: arguments for a model given as a class or an address.
        guide: default: the exact posterior where the model has one, else as for `fit`.
        directory: keep the run there. Under torch.distributed, every process returns the same
            parameters and the first one writes.
        checkpoint_seconds: at least this long between two checkpoints.
        resume: continue the run in `directory` exactly where its last checkpoint stands.

    Returns:
        A run whose history has one "bound" an iteration: log-likelihood in nats per row; online
        that of each pass, at parameters that moved on the way, and of the result.

    Raises:
        ValueError: the model does not offer the two steps, or an option makes no sense.
        NotMonotoneError: the log-likelihood fell by more than rounding.
    """
    begun = time.perf_counter()
    if max_iterations is None:
        max_iterations = 1000 if decay is None else ONLINE_PASSES
    for name, value in (("max_iterations", max_iterations), ("restarts", restarts)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    if directory is None and resume:
        raise ValueError("resume=True needs the directory of the run to continue.")
    whole = data if isinstance(data, Data) else load_data(data)
    train, held_out = split_validation(whole, validation, seed)
    if len(train) < processes.count():
        raise ValueError(f"{len(train)} rows are too few for {processes.count()} processes.")
    batch_size = batch_size or whole.batch_size or (READ_ROWS if decay is None else ONLINE_ROWS)
    source = ModelFactory(model if isinstance(model, str) else copy_programs(model)[0], settings)
    made, states = _starts(source, train, restarts, seed)
    if guide is None and hasattr(made, "posterior"):
        guide = ExactPosterior
    guides = GuideFactory(guide)
    options: dict[str, Any] = {"max_iterations": max_iterations, "tolerance": tolerance}
    options |= {"batch_size": batch_size, "decay": decay, "seed": seed}
    asked = record(source, guides, whole, train, held_out, validation, options, restarts)
    path = None if directory is None else Path(directory)
    first = processes.rank() == 0
    if path is not None and first:
        finished = open_run_directory(path, asked, resume)
        if finished is not None:
            return finished
    state = {name: torch.stack([s[name] for s in states]) for name in states[0]}
    place = None if path is None else path / "checkpoint.safetensors"
    wanted = _EMOptions(max_iterations, tolerance, batch_size, decay, place, checkpoint_seconds)
    with torch.no_grad():
        outcome = _iterate(made, train, held_out, state, wanted, seed)
    run = as_run(made, guides, train, held_out, asked, outcome, begun)
    if path is not None and first:
        from ppl_lvm.report.run_figures import draw

        run.results["directory"] = str(path)
        run.save(path)
        draw(run, train, path / "pictures")
    return run


def _iterate(
    model: Any, train: Data, held_out: Data | None, state: State, wanted: _EMOptions, seed: int
) -> Outcome:
    """EM, or online EM and the log-likelihood at its end."""
    em: EM | OnlineEM
    if wanted.decay is None:
        em = EM(model, train, state, wanted.batch_size, wanted.tolerance, held_out)
        iterate_with_checkpoints(
            em, wanted.max_iterations, wanted.checkpoint, wanted.checkpoint_seconds
        )
        return Outcome(em.state, em.bounds, em.held_out_bounds, em.converged)
    N, seen = len(train), torch.Generator().manual_seed(seed)
    rows = torch.randperm(N, generator=seen)[:READ_ROWS].sort().values
    em = OnlineEM(
        model, train, state, rows, batch_size=wanted.batch_size, decay=wanted.decay, seed=seed
    )
    iterate_with_checkpoints(
        em, wanted.max_iterations, wanted.checkpoint, wanted.checkpoint_seconds
    )
    state = em.result()
    exact = Sums(model, train).over(state)[1] / N
    bounds = [[*passes, last] for passes, last in zip(em.passes, exact.tolist(), strict=True)]
    aside: list[list[float]] = [[] for _ in bounds]
    if held_out is not None:
        last = Sums(model, held_out).over(state)[1] / len(held_out)
        aside = [[bound] for bound in last.tolist()]
    return Outcome(state, bounds, aside, [None] * len(bounds))


def _starts(source: ModelFactory, data: Data, restarts: int, seed: int) -> tuple[Any, list[State]]:
    """A model to run the steps of, and θ of every start."""
    made: Any = None
    states: list[State] = []
    for r in range(restarts):
        pyro.set_rng_seed(seed + r)
        made = source.make(initialization_rows(data), restart=r)
        if not isinstance(made, EMModel):
            raise ValueError(
                f"{source.recipe.name} does not offer expectation-maximisation: it needs the "
                "methods em_state, set_em_state, e_step and m_step "
                "(see ppl_lvm.fitting.em.EMModel). Fit it with an objective of gradients instead."
            )
        states.append({name: t.detach().clone() for name, t in made.em_state().items()})
    return made, states
