"""Draws of a model that was not fitted."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import named_distribution_errors
from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.validate import Count, DataSource, Seed
from ppl_lvm.data import Data, load_data
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.improper import require_proper
from ppl_lvm.programs.pair import copy_programs


@public_call
@named_distribution_errors()
def sample_prior(
    model: Callable[..., Any],
    data: DataSource | None = None,
    n: Count | None = None,
    *,
    num_samples: Count | None = None,
    seed: Seed = 0,
) -> dict[str, Tensor]:
    """Draw latents and observations from a model at its present parameters, before any fit.

    Args:
        model: a Pyro program of the batch.
        data: rows that set shapes and covariates, as of `load_data`; values at observed sites are
            drawn, and those of `data` are not read. None for a model without arguments, or whose
            arguments have defaults.
        n: number of rows (default: those of `data`), which repeat the rows of `data`.
        num_samples: draws S of all sites, in a first dimension; None for one draw without it.
        seed: of the draws.

    Returns:
        Site -> (n, …) for sites of the rows, or (S, n, …).

    Raises:
        ValueError: data are needed, the sizes are not positive, or a prior is improper.
    """
    if isinstance(model, type):
        raise ValueError(f"sample_prior: {model.__name__} is a class. Pass an instance.")
    batch = _batch(model, data, n)
    (model,) = copy_programs(model)  # a first batch sets sizes
    with torch.no_grad(), preserve_rng(), dry_run(model, seed=seed), poutine.block():
        draws = [_draw(model, batch) for _ in range(num_samples or 1)]
    if num_samples is None:
        return draws[0]
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}


def _batch(model: Callable[..., Any], data: Any, n: int | None) -> tuple[Tensor, ...]:
    if data is None:
        forward = getattr(model, "forward", model)
        required = [
            p.name
            for p in inspect.signature(forward).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        if required or n is not None:
            reads = f"takes {', '.join(required)}" if required else "has its own number of rows"
            raise ValueError(
                f"sample_prior: the model {reads}. Pass data of the rows' shape, "
                "sample_prior(model, torch.zeros(100, 5)); observed values are not read."
            )
        return ()
    rows = data if isinstance(data, Data) else load_data(data, missing="keep")
    index = torch.arange(len(rows) if n is None else n) % len(rows)
    return rows.batch(index)


def _draw(model: Callable[..., Any], batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    nodes = poutine.trace(poutine.uncondition(model)).get_trace(*batch).nodes
    require_proper(nodes)
    return {
        name: site["value"]
        for name, site in nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }
