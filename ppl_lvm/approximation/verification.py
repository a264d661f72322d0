"""Comparison of draws with those of NUTS, parameter by parameter.

Of every value x of the latents and of the `pyro.deterministic` sites, with the errors of both sets
of draws:

    difference    (mean − mean_NUTS) / sd_NUTS,    error  √(1/ESS + 1/ESS_NUTS)
    sd_ratio      sd / sd_NUTS,                    error  of the ratio, by those of both sds

A value differs where the difference is above 0.1 and four errors, or the ratio outside 0.9 to 1.1
and four errors. It is unknown where its errors are too large to see a difference of 0.3.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppl_lvm.approximation.chain_statistics import effective_size, relative_sd_error
from ppl_lvm.approximation.summary import value_names
from ppl_lvm.approximation.unconstrained import LogDensity, starting_points
from ppl_lvm.core.types import Tensors

if TYPE_CHECKING:
    from pandas import DataFrame

CLOSE, RATIO = 0.1, 1.1
ERRORS = 4  # that a difference must exceed
VISIBLE = 0.3


def nuts_draws(target: LogDensity, draws: int, warmup: int, generator: torch.Generator) -> Tensors:
    """Draws (S, …) of the reported sites by Pyro's NUTS from a random start: one chain."""
    from pyro.infer import MCMC, NUTS

    start = starting_points(target, 1, generator)[0]
    kernel = NUTS(potential_fn=lambda values: -_Differentiable.apply(values["u"], target))
    sampler = MCMC(
        kernel,
        num_samples=draws,
        warmup_steps=warmup,
        initial_params={"u": start},
        disable_progbar=True,
    )
    sampler.run()
    return target.constrain(sampler.get_samples()["u"])


class _Differentiable(torch.autograd.Function):
    """ℓ of a vector (D,), with the gradient that its record returns."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, target: LogDensity) -> Tensor:
        value, gradient = target(u.detach().unsqueeze(0))
        ctx.save_for_backward(gradient[0])
        return value[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None


def compare(
    draws: Mapping[str, Tensor], num_chains: int, reference: Mapping[str, Tensor]
) -> "DataFrame":
    """One row per value; see the module's docstring.

    Args:
        draws: site -> (S, …), chain after chain.
        num_chains: of these draws.
        reference: site -> (S', …), of one chain.
    """
    from pandas import DataFrame

    rows, names = [], []
    for site, value in draws.items():
        if site not in reference:
            continue
        x = _chains(value, num_chains)
        y = _chains(reference[site], 1)
        for k, name in enumerate(value_names(site, value.shape[1:])):
            if np.ptp(x[..., k]) or np.ptp(y[..., k]):  # not an entry of a structure
                rows.append(_row(x[..., k : k + 1], y[..., k : k + 1]))
                names.append(name)
    return DataFrame(rows, index=names)


def _chains(value: Tensor, num_chains: int) -> np.ndarray:
    flat = value.detach().double().reshape(len(value), -1).numpy()
    return flat.reshape(num_chains, -1, flat.shape[1])


def _row(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    sd, reference_sd = x.std(ddof=1), y.std(ddof=1)
    error = float(np.sqrt(1 / effective_size(x)[0] + 1 / effective_size(y)[0]))
    ratio_error = float(np.hypot(relative_sd_error(x)[0], relative_sd_error(y)[0]))
    with np.errstate(divide="ignore", invalid="ignore"):
        difference, ratio = (x.mean() - y.mean()) / reference_sd, sd / reference_sd
        away = abs(np.log(ratio))
    agrees = abs(difference) <= max(CLOSE, ERRORS * error) and away <= max(
        np.log(RATIO), ERRORS * ratio_error
    )
    known = ERRORS * max(error, ratio_error) <= VISIBLE
    return {
        "mean": x.mean(),
        "sd": sd,
        "NUTS mean": y.mean(),
        "NUTS sd": reference_sd,
        "difference": difference,
        "mcse_difference": error,
        "sd_ratio": ratio,
        "mcse_sd_ratio": ratio * ratio_error,
        "verdict": "differs" if not agrees else "agrees" if known else "unknown",
    }
