"""What all data share, beside a guide for what each datum has of its own.

    q(w, z_1 … z_N | x) = q(w) Π_n q(z_n; λ_n),

with a `GlobalNormal` for the global latents w. A datum's λ_n is found at the centre of q(w), for
which it is the best one where log p is linear in w, and a good one elsewhere. The bound that an
objective estimates draws w, and is a bound whatever λ_n is.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ppl_lvm.guides.global_normal import GlobalNormal
from ppl_lvm.guides.parts.support_transform import enumerated
from ppl_lvm.programs.signatures import Signature


def split_globals(
    model: Callable[..., Any], declared: Signature, batch: tuple[Any, ...]
) -> tuple[GlobalNormal | None, Signature]:
    """A guide for the latents that all data share, if there are any, and the rest of the model."""
    shared = [site for site in declared.global_latents if not enumerated(site)]
    if not shared:
        return None, declared
    kept = tuple(site for site in declared.sites if site not in shared)
    return GlobalNormal(model, *batch), Signature(kept, declared.plates, declared.parameters)


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
