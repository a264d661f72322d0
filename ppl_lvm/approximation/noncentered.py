"""Non-centered coordinates of hierarchical models.

A latent θ ~ N(μ, τ) whose μ and τ are latents too is a funnel where few data inform it: its spread
depends on τ, and no normal fits. With θ = μ + τ η the latents are η ~ N(0, 1), μ and τ. The
posterior of θ is the same. Where data inform each θ well, the centered coordinates are better.

Reference: Papaspiliopoulos, Roberts, Sköld (2007). A general framework for the parametrization of
hierarchical models. https://doi.org/10.1214/088342307000000014
"""

import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from ppl_lvm.approximation.chain_statistics import effective_size, r_hat
from ppl_lvm.approximation.moments import normal_of_draws
from ppl_lvm.approximation.result import Approximation, joined
from ppl_lvm.approximation.unconstrained import LinAlgError, LogDensity
from ppl_lvm.core.distributions import innermost

FAMILIES = ("Normal", "StudentT", "Laplace", "Cauchy", "Logistic")


def centered_sites(density: LogDensity) -> list[str]:
    """Latents with a location and a scale that depend on other latents."""
    u = torch.zeros(density.dim, dtype=density.dtype, requires_grad=True)
    with torch.enable_grad():
        sites = density.trace(u)
    names = []
    for name in density.sites:
        fn = innermost(sites[name]["fn"])
        if type(fn).__name__ in FAMILIES and (fn.scale.requires_grad or fn.loc.requires_grad):
            names.append(name)
    return names


def noncentered(density: LogDensity, names: list[str]) -> LogDensity:
    """The log density with θ = μ + τ η at these sites."""
    config = {name: LocScaleReparam(centered=0.0) for name in names}
    return LogDensity(poutine.reparam(density.model, config=config), density.batch)


def in_centered_coordinates(
    result: Approximation, density: LogDensity, other: LogDensity, names: list[str]
) -> Approximation:
    """A result of `other`, whose sites `names` are not centered, in coordinates of `density`."""
    C, T, _ = result.chains.shape
    flat = joined(result.chains)
    values = other.values(flat, names)
    columns: dict[str, Tensor] = {name: values[name].reshape(C * T, -1) for name in names}
    columns |= {n: flat[:, part] for n, part in other.parts.items() if n in density.parts}
    chains = torch.cat([columns[name] for name in density.parts], 1).reshape(C, T, -1)
    moved = Approximation(**{**vars(result), "chains": chains})
    moved.r_hat, moved.ess = float(r_hat(chains).max()), float(effective_size(chains).min())
    try:
        moved.normal = normal_of_draws(density, joined(chains))
    except LinAlgError:
        moved.reasons.append("the draws have no covariance matrix")
    return moved
