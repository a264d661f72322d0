"""TODO."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_lvm.core import distributed as processes
from ppl_lvm.core.console import Progress
from ppl_lvm.core.torch_specs import describe
from ppl_lvm.data import Data, load_data
from ppl_lvm.data.selection import first_rows, initialization_rows, split_validation
from ppl_lvm.fitting.em_run import record
from ppl_lvm.posterior.evidence import log_evidence
from ppl_lvm.programs.exact_posterior import ExactPosterior
from ppl_lvm.programs.pair import ModelGuidePair, copy_programs
from ppl_lvm.programs.sources import GuideFactory, ModelFactory
from ppl_lvm.runs.directory import open_run_directory
from ppl_lvm.runs.record import evidence_record
from ppl_lvm.runs.run import TEMPLATE_ROWS, Run
from ppl_lvm.training.em.complete_likelihood import CompleteLikelihood
from ppl_lvm.training.em.monte_carlo import MonteCarloEM
from ppl_lvm.training.em.nuts_sampler import Draws
from ppl_lvm.training.em.posterior_guide import bound, fit_guide, make_guide
from ppl_lvm.training.iterate import iterate_with_checkpoints
from ppl_lvm.training.preparation import raise_on_errors
from ppl_lvm.training.trajectory import Trajectory, last_bounds

EVIDENCE_PARTICLES = 1000


def fit_mcem(
    model: Any,
    data: Any,
    *,
    max_iterations: int = 40,
    num_draws: int = 20,
    warmup: int = 50,
    guide: Any = None,
    guide_steps: int = 1000,
    validation: Any = None,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    guide_settings: dict[str, Any] | None = None,
    directory: str | Path | None = None,
    checkpoint_seconds: float = 10.0,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Fit a model by Monte-Carlo EM, then a guide to it. Works on copies.

    Args:
        model: a module whose latents are continuous and whose parameters are `nn.Parameter` or
            `PyroParam`; a class of such, or its address.
        data: see `load_data`; all rows are used at every iteration.
        max_iterations: T. The result is the mean over the second half of them.
        num_draws: S, draws of the chain an iteration.
        warmup: steps of the chain in which it adapts, each time.
        guide: what stands for the posterior in the run; default: the exact posterior where the
            model has one, else as for `fit`.
        guide_steps: of its training, after the model's.
        validation: rows to hold out (an int), a fraction of them, or data of its own.
        seed: of every random number.
        settings, guide_settings: arguments for programs given as classes or addresses.
        directory: keep the run there.
        checkpoint_seconds: at least this long between two checkpoints.
        resume: continue the run in `directory` exactly where its last checkpoint stands.
        progress: show a bar, or plain lines where output is no terminal.

    Returns:
        A run whose history has "complete" and "accept" of every iteration (see `MonteCarloEM`)
        beside the bound of the guide's training, and whose `draws` are the chain's last: site ->
        (S, …) of the posterior of the training rows.

    Raises:
        ValueError: no parameters, no latents, discrete latents, a guide that does not fit, or an
            option makes no sense.
    """
    begun = time.perf_counter()
    wanted = _MonteCarloEMOptions(max_iterations, num_draws, warmup, guide_steps, seed)
    wanted.check()
    if directory is None and resume:
        raise ValueError("resume=True needs the directory of the run to continue.")
    whole = data if isinstance(data, Data) else load_data(data)
    train, held_out = split_validation(whole, validation, seed)
    if not isinstance(model, str) and not isinstance(guide, str):
        model, guide = copy_programs(model, guide)
    source = ModelFactory(model, settings)
    made = _start(source, train, seed)
    if guide is None and hasattr(made, "posterior"):
        guide = ExactPosterior
    guides = GuideFactory(guide, guide_settings)
    for doubt in raise_on_errors(make_guide(made, guides, train, seed)[0], *_all(train)):
        Progress(1, shown=progress).say(doubt.in_a_line())
    asked = record(source, guides, whole, train, held_out, validation, vars(wanted), 1)
    asked["algorithm"] = "Monte-Carlo expectation-maximisation"
    path = None if directory is None else Path(directory)
    finished = None if path is None else open_run_directory(path, asked, resume)
    if finished is not None:
        return finished
    place = None if path is None else path / "checkpoint.safetensors"
    em, draws = _iterate(made, train, wanted, place, checkpoint_seconds, progress)
    pair, summed = make_guide(made, guides, train, seed)
    show = Progress(guide_steps, title="guide", shown=progress)
    history = fit_guide(
        pair, summed, train, held_out, num_steps=guide_steps, seed=seed, progress=show
    )
    run = _as_run(pair, train, held_out, asked, {**history, **em.history}, begun)
    run.trajectories = (Trajectory(em.iterates.tensors(), last_bounds(history["bound"])),)
    run.draws = draws
    if path is not None:
        from ppl_lvm.report.run_figures import draw

        run.results["directory"] = str(path)
        run.save(path)
        draw(run, held_out or train, path / "pictures")
    return run


@dataclass(frozen=True)
class _MonteCarloEMOptions:
    """What was asked of the iterations and of the guide after them."""

    max_iterations: int
    num_draws: int
    warmup: int
    guide_steps: int
    seed: int

    def check(self) -> None:
        for name, value in vars(self).items():
            whole = isinstance(value, int) and not isinstance(value, bool)
            if name != "seed" and (not whole or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if processes.count() > 1:
            raise ValueError("Monte-Carlo EM runs in one process: start it without torchrun.")


def _start(source: ModelFactory, train: Data, seed: int) -> Any:
    """The model before its first iteration; refused if NUTS has no E-step for it."""
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope():
        made = source.make(_all(train))
        CompleteLikelihood(made, _all(train))
    return made


def _iterate(
    model: Any,
    train: Data,
    wanted: _MonteCarloEMOptions,
    place: Path | None,
    seconds: float,
    progress: bool,
) -> tuple[MonteCarloEM, Draws]:
    """All iterations, from the checkpoint at `place` if there is one, and the last draws."""
    pyro.set_rng_seed(wanted.seed)
    with pyro.get_param_store().scope():
        em = MonteCarloEM(
            model,
            _all(train),
            max_iterations=wanted.max_iterations,
            num_draws=wanted.num_draws,
            warmup=wanted.warmup,
            progress=Progress(
                wanted.max_iterations, title="Monte-Carlo EM", figure="log p(x, z)", shown=progress
            ),
        )
        iterate_with_checkpoints(em, wanted.max_iterations, place, seconds)
        return em, em.finish()


def _as_run(
    pair: ModelGuidePair,
    train: Data,
    held_out: Data | None,
    asked: dict[str, Any],
    history: dict[str, list[float]],
    begun: float,
) -> Run:
    """What came of it, judged by the guide."""
    pair.eval_mode()
    seed, rows = asked["options"]["seed"], initialization_rows(train)
    degenerate = getattr(pair.model, "degenerate", None)
    with pair.scope(), torch.no_grad():
        reason = None if degenerate is None else degenerate(*rows)
    value, error = bound(pair, train, len(train), seed)
    aside = aside_error = None
    if held_out is not None:
        aside, aside_error = bound(pair, held_out, len(train), seed)
    entry = {
        "seed": seed,
        "bound": value,
        "bound_monte_carlo_error": error,
        "held_out": aside,
        "held_out_monte_carlo_error": aside_error,
        "steps": asked["options"]["max_iterations"],
        "degenerate": reason,
        "seconds": time.perf_counter() - begun,
    }
    judged = initialization_rows(train if held_out is None else held_out)
    evidence = log_evidence(pair, *judged, num_particles=EVIDENCE_PARTICLES, seed=seed)
    of = "training rows" if held_out is None else "held-out rows"
    results = {"directory": None, **entry, **evidence_record(evidence, of=of, rows=len(judged[0]))}
    restarts = [{**entry, "chosen": True}]
    asked |= {"objective": describe(pair.objective), "restarts": restarts, "results": results}
    return Run(pair, first_rows(train, TEMPLATE_ROWS), history, asked)


def _all(data: Data) -> tuple[Tensor, ...]:
    return data.batch(torch.arange(len(data)))
