"""Fit a guide while the model's parameters are fixed.

A run describes new rows (codes, log p(x), ArviZ data) through a guide. Here the guide is fitted
after the parameters θ, so that its gap to the posterior does not bias θ. It would if one bound
moved both.
"""

import pyro
import torch
from torch.optim import Adam

from ppl_lvm.core.console import Progress
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Program
from ppl_lvm.data import Data
from ppl_lvm.data.selection import first_rows
from ppl_lvm.programs.minibatch import ScaleDataPlate
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.sources import GuideFactory
from ppl_lvm.training.loop import Training
from ppl_lvm.training.options import TrainingOptions
from ppl_lvm.training.preparation import make_guide, prepare_pair, warn_or_raise

EVALUATIONS = 8  # of a bound: enough for its Monte Carlo error


def prepare_guide(
    model: Program, guides: GuideFactory, data: Data, seed: int, *, checked: bool = False
) -> tuple[ModelGuidePair, frozenset[str]]:
    """A copy of the model with a new guide, and the sites that are summed out.

    With `checked` the errors of the pair are raised, and its warnings shown.
    """
    pyro.set_rng_seed(seed)
    rows = first_rows(data, len(data))
    guide = make_guide(guides, model, rows)
    if checked:
        warn_or_raise(model, guide, *rows)
    return prepare_pair(model, guide, None, rows, data)


def fit_guide(
    pair: ModelGuidePair,
    summed: frozenset[str],
    data: Data,
    held_out: Data | None,
    *,
    num_steps: int,
    seed: int,
    progress: Progress,
) -> dict[str, list[float]]:
    """Train the pair's guide, but not its model, on all rows; returns the history.

    The history is empty if the guide has no parameters.
    """
    history: dict[str, list[float]] = {"bound": [], "validation_step": [], "validation_bound": []}
    of_guide = {
        id(leaf)
        for name, leaf in pair.unconstrained_parameters.items()
        if not name.startswith("model/")
    }
    if of_guide:
        options = TrainingOptions(
            num_steps=num_steps,
            batch_size=len(data),
            seed=seed,
            optimizer=lambda leaves: Adam([p for p in leaves if id(p) in of_guide], lr=0.01),
            schedule=f"CosineAnnealingLR(T_max={num_steps})",
            engine="eager",
        )
        training = Training(pair, data, held_out, options, summed=summed)
        with progress:
            training.run(progress)
        history = training.history
        for leaf in pair.unconstrained_parameters.values():
            leaf.grad = None
    return history


def estimate_bound(
    pair: ModelGuidePair, data: Data, num_rows: int, seed: int
) -> tuple[float, float]:
    """ELBO on `data` in nats per row, and its Monte Carlo error.

    The `num_rows` rows of the training data share the terms of global latents.
    """
    scale = ScaleDataPlate(num_rows, pair.row_plates)
    model, guide = scale(pair.model), scale(pair.guide)
    batch = first_rows(data, len(data))
    with torch.no_grad(), preserve_rng(), pair.scope():
        torch.manual_seed(seed)
        loss = [pair.objective.loss(model, guide, *batch) for _ in range(EVALUATIONS)]
    values = -torch.tensor(loss, dtype=torch.float64) / num_rows
    return float(values.mean()), float(values.std() / EVALUATIONS**0.5)
