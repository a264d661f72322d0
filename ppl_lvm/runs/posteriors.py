"""Posterior draws of a run, and predictions."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_lvm.posterior.global_states import global_latents
from ppl_lvm.posterior.predictions import Prediction, complete_batch, predict_rows

if TYPE_CHECKING:
    from pandas import DataFrame

CHAINS = 4  # of an export, joined from those of the method

Run = Any  # ppl_lvm.runs.run.Run, which imports this module


def draws(run: Run, count: int, seed: int) -> dict[str, Tensor]:
    """See `Run.posterior`."""
    if "num_chains" in run.results:
        available = len(next(iter(run.draws.values())))
        if count > available:
            raise ValueError(f"posterior: the run has {available} draws, {count} were asked for.")
        chosen = torch.linspace(0, available - 1, count).round().long()
        return {name: value[chosen] for name, value in run.draws.items()}
    from ppl_lvm.posterior.arviz_export import posterior_draws

    batch = run.training_rows()
    values = posterior_draws(run.pair, batch, count, seed)
    with run.pair.scope():
        names = global_latents(run.guide, batch)
    if not names:
        raise ValueError(
            "posterior: the guide has no global latents. run.encode(x) has the posterior means of "
            "the latents of rows."
        )
    return {name: value for name, value in values.items() if name in names}


def summary(run: Run, count: int) -> "DataFrame":
    """See `Run.summary`."""
    from ppl_lvm.approximation.summary import summarize

    if "num_chains" in run.results:
        return summarize(run.draws, run.results["num_chains"])
    return summarize(draws(run, count, 0))


def predict(run: Run, x: Any, count: int, seed: int) -> Prediction:
    """See `Run.predict`."""
    batch = complete_batch(run.pair, run.batch(x), run.example_rows)
    with run.pair.scope():
        names = global_latents(run.guide, run.example_rows)
    values = {n: value for n, value in draws(run, count, seed).items() if n in names}
    return predict_rows(run.pair, values, batch, seed)


def thinned(run: Run, count: int) -> tuple[dict[str, Tensor], int]:
    """About `count` of the method's draws in at most four chains, evenly spaced along each."""
    total, num_chains = len(next(iter(run.draws.values()))), run.results["num_chains"]
    C = min(CHAINS, num_chains)
    of_each = max(4, min(count, total) // C)
    length = num_chains // C * (total // num_chains)  # draws of a group of chains
    places = torch.linspace(0, length - 1, of_each).round().long()
    index = torch.cat([c * length + places for c in range(C)])
    return {name: value[index] for name, value in run.draws.items()}, C
