"""Posteriors without a normalization.

Along each flat direction of the Hessian the density is followed outward, in steps that double,
until ℓ has fallen by a nat. Where it has not after 16,384 scales, or at the end of the numbers, no
normalization exists.
"""

import torch
from torch import Tensor

from ppl_lvm.approximation.laplace import negative_hessian
from ppl_lvm.approximation.normal import MAX_DENSE, Normal
from ppl_lvm.approximation.unconstrained import LogDensity

FLAT, ROUNDING = 1e-6, 1e-9  # curvature in coordinates of scale 1, and share of the largest
NEAR = 32.0  # scales
STEPS = 15  # that double, to 16,384 scales
FALL = 1.0  # nats
SHARE = 0.1  # of a direction, of sites that are named


def improper(target: LogDensity, normal: Normal) -> str:
    """Why the posterior has no normalization near a normal; "" if nothing shows it."""
    if target.dim > MAX_DENSE:
        return ""
    loc, scale = normal.loc, normal.sd
    hessian = torch.nan_to_num(negative_hessian(target, loc, scale))
    eigenvalues, vectors = torch.linalg.eigh(scale.unsqueeze(1) * hessian * scale)
    flat = eigenvalues < max(FLAT, ROUNDING * float(eigenvalues[-1]))
    for v in vectors.T[flat]:
        if any(not _falls(target, loc, sign * scale * v) for sign in (1, -1)):
            return (
                f"log p(x, z) does not fall along {_sites(target, v)}, so that the posterior is "
                "improper or has no mode: give these proper priors, or leave one out"
            )
    return ""


def _falls(target: LogDensity, loc: Tensor, direction: Tensor) -> bool:
    """True if ℓ falls along a direction before the numbers end."""
    steps = 2.0 ** torch.arange(STEPS, dtype=loc.dtype)
    values, _ = target(torch.cat([loc.unsqueeze(0), loc + steps.unsqueeze(1) * direction]))
    start, values = values[0], values[1:]
    number = ~(values.isnan() | values.isposinf())
    last = int(number.long().cumprod(0).sum())  # steps before the numbers end
    return bool((values[:last] < start - FALL).any()) or last == 0 or float(steps[last - 1]) < NEAR


def _sites(target: LogDensity, v: Tensor) -> str:
    share = {name: float(v[part].square().sum()) for name, part in target.parts.items()}
    return " and ".join(name for name, s in share.items() if s > SHARE)
