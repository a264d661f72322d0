"""Joint states of enumerated sites outside the plate over rows.

Such a site (a change point, the type of a whole data set) is shared by all rows, which depend on
each other through it. Given one joint state c of all of them, and the guide's global latents θ,
rows are independent: with T_cn = log p(x_n | θ, c) and G_c = log p(θ, c),

    log p(x, θ)            = log Σ_c exp(G_c + Σ_n T_cn),
    p(c | x, θ)            ∝ exp(G_c + Σ_n T_cn),
    log p(x_n | x_-n, θ)   = log p(x, θ) − log Σ_c exp(G_c + Σ_{m ≠ n} T_cm),
    log p(y_n | x, θ)      = log Σ_c p(c | x, θ) p(y_n | θ, c)      for new rows y.

The last but one is the density that leave-one-out prediction needs: importance weights
1 / p(x_n | x_-n, θ) remove row n from the posterior of θ, and the sum removes it from that of c.
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.types import Batch, Program, Tensors
from ppl_lvm.particles.plate_dependence import run_plainly
from ppl_lvm.particles.structure import without_side_effects
from ppl_lvm.particles.tracing import is_scored, plate_dim
from ppl_lvm.programs.row_plates import row_plates

MAX_STATES = 4096  # joint states that are enumerated one by one


def global_state_sites(
    model: Program, guide: Program, batch: Batch, known: Collection[str] = ()
) -> dict[str, dict]:
    """The model's latent sites outside the plate over rows that are neither in the guide nor known.

    They are in the order of the program, of a single run.
    """
    plates = row_plates(model, guide, batch=batch).names
    with without_side_effects():
        guide_sites, model_sites = run_plainly(model, guide, batch, {})
    return {
        name: site
        for name, site in model_sites.items()
        if is_scored(site)
        and not site["is_observed"]
        and name not in guide_sites
        and name not in known
        and plate_dim(site, plates) is None
    }


def global_states(
    model: Program, guide: Program, batch: Batch, known: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, int], int]:
    """The C joint states: site -> its values (C, plates, event), number of its plates, and C.

    Raises:
        CannotSayError: more than 4,096 joint states (a Markov chain shared by all rows).
    """
    sites = global_state_sites(model, guide, batch, known)
    supports = {n: site["fn"].enumerate_support(expand=False) for n, site in sites.items()}
    members = {n: site["fn"].batch_shape.numel() for n, site in sites.items()}
    count = math.prod(len(supports[n]) ** members[n] for n in sites)
    if count > MAX_STATES:
        raise CannotSayError(
            f"The rows share the enumerated sites {sorted(sites)}, with {count:.3g} joint states: "
            f"more than {MAX_STATES:,} are too many to condition each row on, so log p(x) has no "
            "terms by row."
        )
    ranges = [torch.arange(len(supports[n])) for n in sites for _ in range(members[n])]
    index = torch.cartesian_prod(*ranges).reshape(count, -1) if sites else torch.zeros(1, 0)
    values = {}
    for (name, site), chosen in zip(
        sites.items(), index.long().split(list(members.values()), 1), strict=True
    ):
        fn = site["fn"]
        flat = supports[name].reshape(len(supports[name]), *fn.event_shape)
        values[name] = flat[chosen].reshape(count, *fn.batch_shape, *fn.event_shape)
    return values, {n: len(site["fn"].batch_shape) for n, site in sites.items()}, count


def require_same_states(train: Tensors, new: Tensors) -> None:
    """Reject new rows for which the shared sites have other states than for the training rows.

    Raises:
        CannotSayError: names the site.
    """
    for name, values in train.items():
        if name not in new or not torch.equal(values, new[name]):
            raise CannotSayError(
                f"Site '{name}' has other states for these rows than for the training rows "
                f"({len(new.get(name, ()))} and {len(values)} joint states), so its posterior says "
                "nothing about them. Let its support not depend on the rows."
            )


def leave_row_out(log_prior: Tensor, rows: Tensor) -> Tensor:
    """log Σ_c exp(G_c + Σ_{m ≠ n} T_cm), (S, N), from G (S, C) and T (S, C, N)."""
    impossible = rows == -math.inf
    finite = rows.masked_fill(impossible, 0.0)
    others = finite.sum(-1, keepdim=True) - finite
    elsewhere = impossible.sum(-1, keepdim=True) - impossible.int() > 0
    return (log_prior[..., None] + others.masked_fill(elsewhere, -math.inf)).logsumexp(1)
