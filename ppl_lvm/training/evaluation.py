"""Bounds of a training at its parameters."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ppl_lvm.core import distributed
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.data import Data, in_order

if TYPE_CHECKING:
    from ppl_lvm.training.loop import Training


def evaluate(
    training: "Training", data: Data, *, repeats: int = 1, at_once: int = 0
) -> list[float]:
    """Estimates of the bound on `data`, nats per row.

    With the full KL weight, in evaluation mode, and with the seed of the options: two evaluations
    of the same parameters are equal. The terms of global latents are divided by the number of
    training rows, as in training.

    Args:
        at_once: rows of a run of the programs, if they take batches of any size; at least those of
            a training batch.
    """
    training.programs.set_kl_weight(training.options.kl_weight)
    modules = [module for _, module in training.pair.modules()]
    modes = [module.training for module in modules]
    try:
        with torch.no_grad(), preserve_rng(), training.pair.scope():
            torch.manual_seed(training.options.seed)
            training.pair.eval_mode()
            return [_evaluate_once(training, data, at_once) for _ in range(repeats)]
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def _evaluate_once(training: "Training", data: Data, at_once: int) -> float:
    programs, pair, total = training.programs, training.pair, 0.0
    if training.train.weights is not None:
        # The programs divide by the weights of the training rows, whose number scales a batch.
        weights = torch.ones(len(data)) if data.weights is None else data.weights
        ratio = len(data) / float(weights.sum())
        per_row = programs.total_weight / programs.num_rows
        data = replace(data, weights=weights * (ratio * per_row))
    size = training.options.batch_size
    if pair.stated_rows is None:
        size = max(size, at_once)
    for rows in in_order(data, size):
        batch = training.rows_of(data, rows)
        loss = pair.objective.loss(programs.model, programs.guide, *batch)
        share = len(rows) / len(data)
        total += training.sign * float(loss * programs.per_row(len(rows))) * share
    return total


def log_evaluation(training: "Training") -> None:
    """Pass the numbers of the last evaluation to the option `log`, in the first process."""
    log = training.options.log
    if log is None or distributed.rank() != 0:
        return
    entry = {"step": training.step_number, "seconds": training.seconds}
    entry |= {name: values[-1] for name, values in training.history.items() if values}
    entry.pop("validation_step", None)
    if training.adaptive is not None and math.isfinite(training.adaptive.predicted_gain):
        entry["predicted_gain"] = training.adaptive.predicted_gain
    log({**entry, "seed": training.options.seed})
