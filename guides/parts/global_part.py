"""Global latents in guides of local latents.

    q(w, z_1 … z_N | x) = q(w) Π_n q(z_n; λ_n),

with a `GlobalNormal` for the global latents w. A row's λ_n is fitted at the center of q(w). It is
optimal for q(w) where log p is linear in w, and close to it elsewhere. The objective draws w, so
that its estimate is a bound for every λ_n.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ppl_lvm.authoring import Signature
from ppl_lvm.guides.global_normal import GlobalNormal
from ppl_lvm.guides.parts.support_transform import enumerated


def without_sites(model_signature: Signature, names: set[str]) -> Signature:
    """The signature without some of its sites."""
    sites = tuple(site for site in model_signature.sites if site.name not in names)
    return replace(model_signature, sites=sites)


def split_globals(
    model: Callable[..., Any], model_signature: Signature, batch: tuple[Any, ...]
) -> tuple[GlobalNormal | None, Signature]:
    """A guide for the global latents, if there are any, and the rest of the model."""
    names = {site.name for site in model_signature.global_latents if not enumerated(site)}
    if not names:
        return None, model_signature
    return GlobalNormal(model, *batch), without_sites(model_signature, names)


def global_centers(shared: GlobalNormal | None) -> dict[str, Tensor]:
    """Site -> T(m) where q is T(N(m, diag s²)), and the mean of a Dirichlet."""
    if shared is None:
        return {}
    return {site.name: _center(shared.distribution(site)) for site in shared.sites}


def _center(fn: Any) -> Tensor:
    if not hasattr(fn, "transforms"):
        mean: Tensor = fn.mean
        return mean
    value = fn.base_dist.mean
    for transform in fn.transforms:
        value = transform(value)
    return value
