"""Models whose posterior is a distribution over one vector."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ppl_lvm.programs.minibatch import WeightedProgram
from ppl_lvm.programs.row_plates import row_plates
from ppl_lvm.programs.signatures import Signature

MAX_DIM = 10_000  # unconstrained values, of which thousands of draws are kept


def unsuitable(signed: Signature, num_rows: int, shown_rows: int) -> str | None:
    """Reason why a model has no posterior over one short vector, or None.

    Args:
        signed: its signature on `shown_rows` of `num_rows` rows.
    """
    for parameter in signed.parameters:
        return f"the model has the parameter {parameter.name!r}, and a posterior of latents only"
    sampled = [site for site in signed.latents if site.enumerate is None or not site.discrete]
    if len(sampled) < len(signed.latents):
        return "the model has enumerated sites"
    for site in sampled:
        if site.discrete:
            return f"{site.name!r} is discrete"
    if not any(not site.local for site in sampled):
        return "the model has no latent outside the plate over rows"
    if signed.row_plate is not None and signed.row_plate.full_size != signed.row_plate.size:
        return "the model reads a subsample of its rows"
    dim = sum(
        math.prod(site.shape) * (num_rows / shown_rows if site.local else 1) for site in sampled
    )
    if dim > MAX_DIM:
        return f"the latents have {dim:,.0f} values, more than {MAX_DIM:,}"
    return None


def weighted_rows(
    model: Callable[..., Any], rows: tuple[Tensor, ...], weights: Tensor | None
) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """A program and its arguments, in which the density of row n counts w_n times."""
    if weights is None:
        return model, rows
    return WeightedProgram(model, row_plates(model, batch=rows).names), (*rows, weights)
