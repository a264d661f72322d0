"""A guide for a model that was fitted without one: q learns, the model stays as it is.

What a run says of new rows (codes, log p(x), ArviZ data) goes through a guide. Here it is fitted
when the parameters θ are known, so that its gap to the posterior costs θ nothing, as it would if
both were moved by a bound.
"""

import pyro
import torch
from torch import Tensor
from torch.optim import Adam

from ppl_lvm.core.console import Progress
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.data import Data
from ppl_lvm.programs.minibatch import ScaleDataPlate
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.sources import GuideFactory
from ppl_lvm.training.gradient_step import Options
from ppl_lvm.training.loop import Training
from ppl_lvm.training.preparation import prepare_pair

EVALUATIONS = 8  # of a bound: enough to say how far its draws let it wander


def make_guide(
    model: object, guides: GuideFactory, data: Data, seed: int
) -> tuple[ModelGuidePair, frozenset[str]]:
    """A copy of the model with a guide made for it, and the sites that are summed out."""
    pyro.set_rng_seed(seed)
    rows = data.batch(torch.arange(len(data)))
    with pyro.get_param_store().scope():
        guide = guides.make(model, rows)
    return prepare_pair(model, guide, None, rows, data)  # type: ignore[arg-type]


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
    """Train the pair's guide alone on all rows, and return the history.

    The history is empty where the guide has nothing to learn.
    """
    history: dict[str, list[float]] = {"bound": [], "validation_step": [], "validation_bound": []}
    own = {
        id(leaf)
        for name, leaf in pair.unconstrained_parameters.items()
        if not name.startswith("model/")
    }
    if own:
        options = Options(
            num_steps,
            batch_size=len(data),
            seed=seed,
            optimizer=lambda leaves: Adam([p for p in leaves if id(p) in own], lr=0.01),
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


def bound(pair: ModelGuidePair, data: Data, num_rows: int, seed: int) -> tuple[float, float]:
    """The ELBO on `data` in nats per row, and its Monte-Carlo error.

    Terms of global latents are shared by the `num_rows` rows of the training data.
    """
    scale = ScaleDataPlate(num_rows)
    model, guide = scale(pair.model), scale(pair.guide)
    batch: tuple[Tensor, ...] = data.batch(torch.arange(len(data)))
    with torch.no_grad(), preserve_rng(), pair.scope():
        torch.manual_seed(seed)
        loss = [pair.objective.loss(model, guide, *batch) for _ in range(EVALUATIONS)]
    values = -torch.tensor(loss, dtype=torch.float64) / num_rows
    return float(values.mean()), float(values.std() / EVALUATIONS**0.5)
