"""Predictions for new rows.

With draws θ_s of the posterior of the global latents, y_s ~ p(y | x_new, θ_s) are draws of the
posterior predictive distribution: one for each draw of the globals, fresh local latents included.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.distributions.util import validation_enabled
from torch import Tensor

from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.types import Batch, Tensors
from ppl_lvm.posterior.simulation import observed_arguments
from ppl_lvm.programs.pair import ModelGuidePair


@dataclass(frozen=True)
class Prediction:
    """Draws of new rows.

    Attributes:
        draws: observed site -> (S, N, …).
    """

    draws: Mapping[str, Tensor]

    @property
    def mean(self) -> Tensors:
        """Observed site -> posterior predictive mean (N, …)."""
        return {name: y.double().mean(0) for name, y in self.draws.items()}

    def interval(self, probability: float = 0.9) -> Tensors:
        """Observed site -> central interval (2, N, …) of this probability."""
        if not 0 < probability < 1:
            raise ValueError(f"probability must be between 0 and 1, got {probability}.")
        tails = torch.tensor([(1 - probability) / 2, (1 + probability) / 2], dtype=torch.float64)
        return {name: y.double().quantile(tails, dim=0) for name, y in self.draws.items()}

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {tuple(y.shape)}" for name, y in self.draws.items())
        return f"<Prediction of {shapes}>"


def complete_batch(pair: ModelGuidePair, x: Batch, example: Batch) -> Batch:
    """The model's arguments: those of new rows, and example values where it observes one.

    Raises:
        ValueError: the tensors are neither all arguments nor those that it only reads.
    """
    if len(x) == len(example):
        return x
    with pair.scope():
        observed = set(observed_arguments(pair.model, *example).values())
    if len(x) != len(example) - len(observed):
        raise ValueError(
            f"predict: the model takes {len(example)} tensors, of which it observes "
            f"{len(observed)}; got {len(x)}. Pass the tensors that it reads, or all of them."
        )
    index = torch.arange(len(x[0])) % len(example[0])
    tensors = iter(x)
    return tuple(part[index] if i in observed else next(tensors) for i, part in enumerate(example))


def predict_rows(pair: ModelGuidePair, draws: Tensors, batch: Batch, seed: int) -> Prediction:
    """One draw of the observed sites for each of S draws of the latents.

    Args:
        draws: global latent -> (S, …). Other latents are drawn from the model.
    """
    with torch.no_grad(), pair.scope(), poutine.block(), isolated_rng(seed):
        free = poutine.uncondition(pair.model)
        nodes = poutine.trace(pair.model).get_trace(*batch).nodes
        observed = [n for n, s in nodes.items() if s["type"] == "sample" and s["is_observed"]]
        latents = {n: v for n, v in draws.items() if n in nodes and not _is_deterministic(nodes[n])}

        def run(values: Tensors) -> Tensors:
            sites = poutine.trace(poutine.condition(free, values)).get_trace(*batch).nodes
            return {name: sites[name]["value"] for name in observed}

        try:
            with warnings.catch_warnings(), validation_enabled(False):
                warnings.simplefilter("ignore")
                batched: Tensors = torch.func.vmap(run, randomness="different")(latents)
            return Prediction(batched)
        except Exception:  # operations that cannot be batched
            count = len(next(iter(draws.values())))
            runs = [run({n: v[s] for n, v in latents.items()}) for s in range(count)]
            return Prediction({n: torch.stack([r[n] for r in runs]) for n in observed})


def _is_deterministic(site: Mapping[str, object]) -> bool:
    infer = site["infer"]
    return isinstance(infer, dict) and bool(infer.get("_deterministic"))
