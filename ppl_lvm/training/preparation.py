"""Preparation of a model and a guide for training."""

import math
import warnings
from collections.abc import Callable
from copy import copy
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor

from ppl_lvm.checks import Issues, check, check_model
from ppl_lvm.checks.enumeration import is_scale_error
from ppl_lvm.checks.trial_runs import trial_trace
from ppl_lvm.core import distributed
from ppl_lvm.core.console import Progress
from ppl_lvm.core.distributions import named_distribution_errors
from ppl_lvm.core.messages import reason_of
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.torch_specs import adds_particle_plate
from ppl_lvm.core.types import Batch, Program
from ppl_lvm.data import Data
from ppl_lvm.estimators import objectives
from ppl_lvm.estimators.base import Estimator, announce_parameter
from ppl_lvm.posterior import predict
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.minibatch import ScaleDataPlate, WeightedProgram
from ppl_lvm.programs.pair import KeepLayout, ModelGuidePair, copy_programs
from ppl_lvm.programs.row_plates import row_plates
from ppl_lvm.programs.sources import GuideFactory, move_to_batch_device
from ppl_lvm.programs.traces import latent_sites, plate_nesting, row_plate_size
from ppl_lvm.training.kl_weight import KLWeight, refuse_summed_parents
from ppl_lvm.training.support_check import SupportCheck

# Objectives of Pyro whose loss is a sum of scaled log-densities, which weights of rows multiply.
_SUMS_OVER_ROWS = (Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO)


def prepare_pair(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    objective: str | ELBO | None,
    example: tuple[Tensor, ...],
    train: Data,
) -> tuple[ModelGuidePair, frozenset[str]]:
    """The pair, ready to train, and the sites that are summed out of its model.

    Raises:
        ValueError: mini-batches without a plate over rows, or an objective that would be wrong.
    """
    pair = ModelGuidePair(model, guide, objectives.objective(objective or "Trace_ELBO"))
    model_trace = pair.materialize_parameters(*example)
    with pair.scope(), torch.no_grad(), preserve_rng(), poutine.block():
        guide_trace = poutine.trace(pair.guide).get_trace(*example)
    if objective is None:
        pair.objective = objectives.objective(
            objectives.default_objective(
                model_trace, guide_trace, refined=getattr(guide, "refines_rows", False)
            )
        )
    if train.weights is not None:
        if objective is None and isinstance(pair.objective, TraceEnum_ELBO):
            pair.objective = objectives.objective("ELBO")
        _require_weights(pair, model_trace, guide_trace)
    move_to_batch_device(pair.objective, example)
    if isinstance(pair.objective, TraceEnum_ELBO) and math.isinf(pair.objective.max_plate_nesting):
        # Pyro sets this at the first step; set here, no step changes the objective.
        nesting = max(plate_nesting(model_trace), plate_nesting(guide_trace))
        pair.objective.max_plate_nesting = nesting + adds_particle_plate(pair.objective)
    rows = len(example[0])
    _require_row_plate(model_trace, pair.row_plates, rows, len(train))
    if pair.joint_sites and distributed.world_size() > 1:
        latents = [n for n in latent_sites(model_trace) if n in pair.joint_sites]
        name = (latents or sorted(pair.joint_sites))[0]
        raise ValueError(
            f"Site {name!r} holds all rows together, and each of several processes would see a "
            "part of them. Train in one process: start it without torchrun."
        )
    with pair.scope(), torch.no_grad():
        objectives.refuse_estimates(pair.objective, model_trace, guide_trace)
    objectives.refuse_wrong_gradients(
        pair.objective, guide_trace, pair.row_plates, subsampled=rows < len(train)
    )
    if not isinstance(pair.objective, Estimator):
        _require_loss(pair, model_trace, guide_trace, example)
    return pair, predict.summed_sites(pair, *example)


def _require_loss(
    pair: ModelGuidePair,
    model_trace: poutine.Trace,
    guide_trace: poutine.Trace,
    example: tuple[Tensor, ...],
) -> None:
    """Evaluate one of Pyro's objectives once: where it fails, say so before training.

    Raises:
        ValueError: with the site or the reason, and an objective that serves the pair.
    """
    objectives.refuse_missing_sites(pair.objective, model_trace, guide_trace)
    name = type(pair.objective).__name__
    if name.startswith("Jit"):  # it remembers its first programs
        return
    programs = pair.model, pair.guide
    try:
        with (
            pair.scope(),
            torch.no_grad(),
            dry_run(*programs, seed=0),
            warnings.catch_warnings(),
            named_distribution_errors(),
        ):
            warnings.simplefilter("ignore")
            copy(pair.objective).loss(*programs, *example)
    except Exception as error:  # every exception of Pyro's objectives and of users' programs
        summed = latent_sites(model_trace).keys() - latent_sites(guide_trace).keys()
        sites = " and ".join(map(repr, sorted(summed))) or "enumerated sites"
        instead = objectives.default_objective(model_trace, guide_trace).partition("(")[0]
        instead = instead if instead != name else "ELBO"
        reason = (
            f"it rejects the poutine.scale inside the sum over {sites}."
            if is_scale_error(error)
            else f"it fails on this pair ({reason_of(error).rstrip('.')})."
        )
        raise ValueError(f"{name}: {reason} Use {instead}.") from error


def _require_weights(
    pair: ModelGuidePair, model_trace: poutine.Trace, guide_trace: poutine.Trace
) -> None:
    """Refuse weights of rows that the objective or the model would ignore."""
    objective, name = pair.objective, type(pair.objective).__name__
    if not isinstance(objective, Estimator) and type(objective) not in _SUMS_OVER_ROWS:
        raise ValueError(
            f"weights: {name} treats all rows alike. Use ELBO, LeaveOneOut(num_particles=4), or "
            "another estimator of ppl_lvm."
        )
    if isinstance(objective, TraceEnum_ELBO):
        for site in latent_sites(model_trace).keys() - latent_sites(guide_trace).keys():
            raise ValueError(
                f"weights: {name} sums {site!r} out with one weight for all rows. Use ELBO, whose "
                "sums have a weight each."
            )
    if row_plate_size(model_trace, pair.row_plates) is None:
        raise ValueError(
            "weights: the model has no plate over the rows. Put the sites per row into pyro.plate("
            '"data", len(x)).'
        )


def _require_row_plate(
    model_trace: poutine.Trace, plates: frozenset[str], rows: int, num_rows: int
) -> None:
    """Refuse a model whose rows are in no plate where a batch has some of them."""
    if rows < num_rows and (size := row_plate_size(model_trace, plates)) != rows:
        raise ValueError(
            f"A batch of {rows} of {num_rows} rows needs its sites per row in "
            'pyro.plate("data", len(x)), or their log-probability would count too little; '
            + ("the model has no such plate." if size is None else f"its plate has {size}.")
            + " Write the plate, or leave batch_size out."
        )


class PreparedPrograms:
    """The model and guide of a pair as its objective sees them.

    Handlers from the inside out: support check, KL weight, mini-batch scale. The programs are
    wrapped once, because objectives remember facts about a program.

    Attributes:
        pair: the programs without handlers.
        model, guide: the wrapped programs.
        num_rows: N, that of the programs where they state it.
        scales_rows: True if rows have the scale N/B, so that the loss of a batch estimates the loss
            of all N rows. An objective that scales inside has the loss of B rows.
        support: collects the support checks of a run of the model.

    Args:
        pair: prepared by `prepare_pair`.
        num_rows: N.
        summed: sites summed out of the model.
        weighted: the KL term has a weight β.
        check_support: the model may be replayed, where Pyro's own validation does not run.
        row_weights: of the example's rows; the wrapped programs then take (*batch, weights).
        total_weight: Σ w_n of all rows (default: N).
    """

    def __init__(
        self,
        pair: ModelGuidePair,
        example: tuple[Tensor, ...],
        num_rows: int,
        *,
        summed: frozenset[str] = frozenset(),
        weighted: bool = False,
        check_support: bool = False,
        row_weights: Tensor | None = None,
        total_weight: float | None = None,
    ) -> None:
        self.pair, self.num_rows = pair, pair.stated_rows or num_rows
        self.total_weight = float(self.num_rows) if total_weight is None else total_weight
        self.model: Program = pair.model
        self.guide: Program = pair.guide
        self.support = SupportCheck()
        self._kl = KLWeight(summed)
        if check_support:
            self.model = self.support(self.model)
        if not isinstance(pair.objective, Estimator) and not _announces(pair, example):
            self.model = _announcing(self.model, pair)
        if weighted:
            refuse_summed_parents(pair, summed, *example)
            self.model, self.guide = self._kl(self.model), self._kl(self.guide)
        # The loss of rows that are dependent, or in no plate, is that of these rows alone.
        independent = bool(pair.row_plates) and not pair.joint_sites
        self.scales_rows = independent and not objectives.scales_inside(pair.objective)
        if self.scales_rows:
            scale = ScaleDataPlate(self.num_rows, pair.row_plates)
            self.model, self.guide = scale(self.model), scale(self.guide)
        if row_weights is not None:
            scales = not isinstance(pair.objective, Estimator)
            self.model = WeightedProgram(self.model, pair.row_plates, scales)
            self.guide = WeightedProgram(self.guide, pair.row_plates, scales)
            example = (*example, row_weights)
        # Before a checkpoint is loaded: a resumed run must not repeat it.
        pair.initialize_objective(self.model, self.guide, *example)
        devices = {t.device for t in (*pair.unconstrained_parameters.values(), *example)}
        if len(devices) == 1:  # a CUDA graph cannot read a number from the CPU
            self._kl.value = self._kl.value.to(devices.pop())

    @property
    def kl_weight(self) -> Tensor:
        """β (), as the programs read it."""
        return self._kl.value

    def set_kl_weight(self, value: float) -> None:
        """Set β."""
        self._kl.value.fill_(value)

    def per_row(self, rows: int) -> float:
        """Factor from the objective's loss on a batch of so many rows to nats per row."""
        return 1.0 / (self.total_weight if self.scales_rows else rows)


def _announces(pair: ModelGuidePair, example: tuple[Tensor, ...]) -> bool:
    """True if a run of the pair has a parameter site: of pyro.param or of a PyroModule."""
    with pair.scope(), torch.no_grad(), preserve_rng(), poutine.block():
        guide_trace = poutine.trace(pair.guide).get_trace(*example)
        model_trace = poutine.trace(poutine.replay(pair.model, guide_trace)).get_trace(*example)
    traces = (guide_trace, model_trace)
    return any(site["type"] == "param" for trace in traces for site in trace.nodes.values())


def _announcing(model: Program, pair: ModelGuidePair) -> Program:
    """The model with one parameter site: without any, Pyro's objectives take no gradient."""

    def run(*args: Any, **kwargs: Any) -> Any:
        for name, leaf in list(pair.unconstrained_parameters.items())[:1]:
            announce_parameter(name, leaf)
        return model(*args, **kwargs)

    return run


def make_guide(guides: GuideFactory, model: Program, batch: Batch, *, restart: int = 0) -> Program:
    """The guide of a model; where it cannot be made, the model's faults are the reason.

    Raises:
        ValueError: the model does not run on the batch.
    """
    try:
        with pyro.get_param_store().scope():  # builders may run programs
            return guides.make(model, batch, restart=restart)
    except Exception:
        require_running_model(model, *batch)
        raise


def require_running_model(model: Program, *batch: Tensor) -> None:
    """Raise the faults that keep a model from running alone.

    Raises:
        ValueError: the model does not run on the batch.
    """
    with pyro.get_param_store().scope():
        _raise(check_model(*copy_programs(model), *batch))


def warn_or_raise(
    model: Program,
    guide: Program,
    *batch: Tensor,
    num_rows: int | None = None,
    by_gradient: bool = True,
) -> None:
    """Raise the errors that `check` finds in copies of a pair; show its warnings.

    Args:
        num_rows: N, of which the batch has some.
        by_gradient: False if the pair is only evaluated after the fit: its errors are shown.

    Raises:
        ValueError: the pair has an error; each is listed with its remedy.
    """
    model, guide = copy_programs(model, guide)  # parameters that a first run creates are theirs
    with pyro.get_param_store().scope(), KeepLayout():
        issues = check(model, guide, *batch, num_rows=num_rows)
        if not issues.ok and num_rows is not None:  # a guide of all rows has other faults then
            trace = trial_trace(model, *batch)
            if trace is not None:
                plates = row_plates(model, guide, batch=batch).names
                _require_row_plate(trace, plates, len(batch[0]), num_rows)
    if by_gradient:
        _raise(issues)
    for issue in issues:
        if issue.severity != "note" and distributed.rank() == 0:
            Progress(1).say(issue.in_a_line())


def _raise(issues: Issues) -> None:
    if not issues.ok:
        listed = "\n".join(str(issue) for issue in issues.errors)
        raise ValueError(f"This model and guide cannot be trained.\n{listed}")
