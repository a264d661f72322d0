"""Posterior draws of a run, and predictions."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.data import Data
from ppl_lvm.posterior.evidence import Evidence, log_evidence
from ppl_lvm.posterior.global_states import global_latents
from ppl_lvm.posterior.joined_evidence import join
from ppl_lvm.posterior.predict import require_posterior
from ppl_lvm.posterior.predictions import Prediction, complete_batch, predict_rows
from ppl_lvm.posterior.suitability import unsuitable, weighted_rows
from ppl_lvm.programs.signatures import signature
from ppl_lvm.runs.rows import batches

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


def evidence(run: Run, data: Data, num_particles: int, seed: int) -> Evidence:
    """See `Run.log_evidence`."""
    parts: list[Evidence] = []
    of_rows: list[Tensor | None] = []
    generator = torch.Generator().manual_seed(seed)
    for batch, weights in batches(run.pair, data):
        require_posterior(run.pair, *batch, what="log_evidence")
        training = None if run.is_training_data(batch) else run.training_rows
        part = log_evidence(
            run.pair,
            *batch,
            num_particles=num_particles,
            seed=int(torch.randint(2**31, (), generator=generator)) if parts else seed,
            training=training,
            weights=weights,
            training_weights=None if training is None else run.training_weights(),
        )
        parts.append(part)
        of_rows.append(weights)
    return join(parts, of_rows)


def summary(run: Run, count: int) -> "DataFrame":
    """See `Run.summary`."""
    from ppl_lvm.approximation.summary import summarize

    if "num_chains" in run.results:
        return summarize(run.draws, run.results["num_chains"])
    return summarize(draws(run, count, 0))


def verify(run: Run, nuts: bool, count: int, warmup: int, seed: int) -> "DataFrame":
    """See `Run.verify`."""
    from ppl_lvm.approximation import approximate
    from ppl_lvm.approximation.unconstrained import LogDensity
    from ppl_lvm.approximation.verification import compare, nuts_draws
    from ppl_lvm.programs.precision import default_dtype

    batch = run.training_rows()
    with preserve_rng(), run.pair.scope():
        problem = unsuitable(signature(run.model, *batch), len(batch[0]), len(batch[0]))
        if problem is not None:
            raise ValueError(
                f"verify: {problem}, which the chains do not sample. run.diagnose() tests the fit "
                "by its weights."
            )
        values = draws(run, min(4000, _available(run)), seed)
    double = torch.float64
    with preserve_rng(), run.pair.scope(), default_dtype(double):
        torch.manual_seed(seed)
        model = copy.deepcopy(run.model)
        if isinstance(model, nn.Module):
            model.to(double)
        rows = tuple(t.to(double) if t.is_floating_point() else t for t in batch)
        target = LogDensity(*weighted_rows(model, rows, run.training_weights()))
        generator = torch.Generator().manual_seed(seed)
        if nuts:
            reference = nuts_draws(target, count, warmup, generator)
        else:
            reference = target.constrain(approximate(target, "auto", generator).thinned())
    table = compare(values, 1, reference)
    print(table.to_string(float_format=lambda x: f"{x:.3g}"))
    return table


def _available(run: Run) -> int:
    return len(next(iter(run.draws.values()))) if run.draws else 4000


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
