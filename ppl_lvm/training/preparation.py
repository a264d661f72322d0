"""A model and a guide -> a pair that may be trained, or the reason why not."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO, TraceEnum_ELBO
from torch import Tensor

from ppl_lvm.checks import Issue, check
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.data import Data
from ppl_lvm.estimators import objectives
from ppl_lvm.posterior import predict
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.sources import move_to_batch_device
from ppl_lvm.programs.traces import data_plate_size, plate_nesting


def prepare_pair(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    objective: str | ELBO | None,
    example: tuple[Tensor, ...],
    train: Data,
) -> tuple[ModelGuidePair, frozenset[str]]:
    """The pair, ready to train, and the sites that are summed out of its model.

    Raises:
        ValueError: mini-batches without a plate "data", or an objective that would be wrong.
    """
    pair = ModelGuidePair(model, guide, objectives.objective(objective or "Trace_ELBO"))
    model_trace = pair.materialize_parameters(*example)
    with pair.scope(), torch.no_grad(), preserve_rng(), poutine.block():
        guide_trace = poutine.trace(pair.guide).get_trace(*example)
    if objective is None:
        pair.objective = objectives.objective(
            objectives.default_objective(model_trace, guide_trace)
        )
    move_to_batch_device(pair.objective, example)
    if isinstance(pair.objective, TraceEnum_ELBO) and math.isinf(pair.objective.max_plate_nesting):
        # As Pyro finds at the first step: then no step changes the objective.
        nesting = max(plate_nesting(model_trace), plate_nesting(guide_trace))
        pair.objective.max_plate_nesting = nesting
    rows = len(example[0])
    if rows < len(train):
        size = data_plate_size(model_trace)
        if size != rows:
            raise ValueError(
                f"A batch of {rows} of {len(train)} rows needs its per-datum sites in "
                'pyro.plate("data", len(x)), or their log-probability would count too little; '
                + ("the model has no such plate." if size is None else f"its plate has {size}.")
                + " Write the plate, or leave batch_size out."
            )
    with pair.scope(), torch.no_grad():
        objectives.refuse_estimates(pair.objective, model_trace, guide_trace)
    objectives.refuse_wrong_gradients(pair.objective, guide_trace, subsampled=rows < len(train))
    return pair, predict.summed_sites(pair, *example)


def raise_on_errors(
    pair: ModelGuidePair, *batch: Tensor, num_rows: int | None = None
) -> tuple[Issue, ...]:
    """Raise where `check` finds an error in a pair whose batches stand for so many rows; the
    message has each error with its remedy. Returns its warnings."""
    with pair.scope():
        findings = check(pair.model, pair.guide, *batch, num_rows=num_rows)
    if not findings.ok:
        listed = "\n".join(str(finding) for finding in findings.errors)
        raise ValueError(f"This model and guide cannot be trained.\n{listed}")
    return tuple(finding for finding in findings if finding.severity == "warning")
