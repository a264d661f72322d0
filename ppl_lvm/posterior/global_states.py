"""Global latents: draws, and joint states of enumerated ones.

An enumerated site outside the plate over rows (a change point, the type of a whole data set) is
shared by all rows, which depend on each other through it. Given one joint state c
of all of them, and the guide's global latents θ, rows are independent: with
T_cn = log p(x_n | θ, c) and G_c = log p(θ, c),

    log p(x, θ)            = log Σ_c exp(G_c + Σ_n T_cn),
    p(c | x, θ)            ∝ exp(G_c + Σ_n T_cn),
    log p(x_n | x_-n, θ)   = log p(x, θ) − log Σ_c exp(G_c + Σ_{m ≠ n} T_cm),
    log p(y_n | x, θ)      = log Σ_c p(c | x, θ) p(y_n | θ, c)      for new rows y.

The last but one is the density that leave-one-out prediction needs: importance weights
1 / p(x_n | x_-n, θ) remove row n from the posterior of θ, and the sum removes it from that of c.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import is_point
from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Batch, Program, Tensors
from ppl_lvm.particles import analyze_for_particles
from ppl_lvm.particles.plate_dependence import follow_draws, run_plainly
from ppl_lvm.particles.structure import PairStructure, without_side_effects
from ppl_lvm.particles.tracing import Sites, is_scored, plate_dim, trace_program
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


def leave_row_out(log_prior: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """log Σ_c exp(G_c + Σ_m w_m T_cm − T_cn), (S, N), from G (S, C), T (S, C, N) and w (N,).

    One of the w_n copies of row n is left out.
    """
    impossible = rows == -math.inf
    finite, one = rows.masked_fill(impossible, 0.0), weights.clamp(max=1)
    others = (weights * finite).sum(-1, keepdim=True) - one * finite
    elsewhere = (weights * impossible).sum(-1, keepdim=True) - one * impossible > 0
    return (log_prior[..., None] + others.masked_fill(elsewhere, -math.inf)).logsumexp(1)


@dataclass(frozen=True)
class GlobalDraws:
    """S draws θ_s ~ q of the guide's global latents.

    Attributes:
        values: site -> (S, plates, event), with the plates of a single run.
        plate_dims: site -> number of its plate dimensions.
        count: S.
    """

    values: Tensors
    plate_dims: Mapping[str, int]
    count: int

    def select(self, index: slice | Tensor) -> "GlobalDraws":
        """These draws."""
        values = {name: value[index] for name, value in self.values.items()}
        return replace(self, values=values, count=len(torch.arange(self.count)[index]))

    def join(self, values: Tensors, plate_dims: Mapping[str, int]) -> "GlobalDraws":
        """The draws with further sites."""
        joined = {**self.values, **values}
        return replace(self, values=joined, plate_dims={**self.plate_dims, **plate_dims})

    def under_particles(self, nesting: int) -> dict[str, Tensor]:
        """Site -> (S, all `nesting` plates, event)."""
        return {
            name: value.reshape(
                len(value), *[1] * (nesting - self.plate_dims[name]), *value.shape[1:]
            )
            for name, value in self.values.items()
        }

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for s in range(self.count):
            yield {name: value[s] for name, value in self.values.items()}


def draw_globals(
    guide: Program, batch: Batch, num_draws: int, structure: PairStructure | None = None
) -> GlobalDraws:
    """θ_s ~ q; under a particle plate if `structure` allows it and no latent is local."""
    single = global_sites(guide, batch)
    latents = set() if structure is None else structure.latents.keys()
    if structure is not None and structure.vectorized and latents <= single.keys():
        count = max(2, num_draws)  # a single draw has no particle dimension
        drawn = trace_program(guide, batch, {}, particles=count, nesting=structure.nesting)
        values = {
            n: drawn[n]["value"]
            .expand(count, *drawn[n]["value"].shape[1:])[:num_draws]
            .reshape(num_draws, *site["value"].shape)
            for n, site in single.items()
        }
    else:
        draws = [single] + [global_sites(guide, batch) for _ in range(num_draws - 1)]
        values = {n: torch.stack([sites[n]["value"] for sites in draws]) for n in single}
    return GlobalDraws(values, {n: len(s["fn"].batch_shape) for n, s in single.items()}, num_draws)


def as_global_draws(guide: Program, batch: Batch, draws: Sequence[Tensors]) -> GlobalDraws:
    """S draws of global latents, site -> value of a single run, put together."""
    sites = global_sites(guide, batch)
    values = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    return GlobalDraws(values, {n: len(sites[n]["fn"].batch_shape) for n in values}, len(draws))


def global_latents(guide: Program, batch: Batch) -> frozenset[str]:
    """The guide's latents outside the plate over rows."""
    with preserve_rng():
        return frozenset(global_sites(guide, batch))


def global_sites(guide: Program, batch: Batch) -> Sites:
    """The guide's latent sites outside the plate over rows, of one run."""
    plates = row_plates(guide, batch=batch).names
    sites = trace_program(guide, batch, {}, particles=None, nesting=0)
    return {
        n: s for n, s in sites.items() if not site_is_subsample(s) and plate_dim(s, plates) is None
    }


def condition_on_globals(model: Program, guide: Program, theta: Tensors) -> tuple[Program, Program]:
    """The programs with the global latents fixed at θ and hidden: only local ones remain."""
    model, guide = (
        poutine.block(poutine.condition(p, data=dict(theta)), hide=list(theta))
        for p in (model, guide)
    )
    return model, guide


def local_structure(
    model: Program, guide: Program, batch: Batch, theta: Tensors, num_particles: int
) -> PairStructure:
    """The structure of the pair conditioned on the global latents."""
    programs = condition_on_globals(model, guide, theta)
    return analyze_for_particles(*programs, batch, {}, num_particles)


def structure_given_globals(
    model: Program, guide: Program, batch: Batch, draws: GlobalDraws, local: set[str], K: int
) -> PairStructure:
    """The structure of the pair at known global latents, in which rows must be independent.

    Raises:
        CannotSayError: rows are joint, or draws of the global latents determine local ones.
    """
    shared = global_sites(guide, batch).keys()
    joint = _points_of(guide, batch, shared) & local
    if joint:
        joint -= _points_of(guide, batch, local)
    for name in sorted(joint):
        raise CannotSayError(
            f"log p(x) has no terms by row: the guide draws '{name}' of all rows together with the "
            f"global latents, so a row has no draws of '{name}' given these. Draw local latents in "
            "the plate over rows, as AutoNormal and the default guide do."
        )
    at_theta = local_structure(model, guide, batch, next(iter(draws)), K)
    if local and at_theta.data_plate is None:
        raise CannotSayError(no_terms(at_theta.enumerated))
    return at_theta


def _points_of(guide: Program, batch: Batch, draws: Collection[str]) -> set[str]:
    """The guide's Delta sites whose values are functions of these draws."""
    with without_side_effects(), follow_draws(only=draws) as dependence:
        sites = trace_program(guide, batch, {}, particles=None, nesting=0)
        return {
            name
            for name, site in sites.items()
            if is_scored(site)
            and is_point(site["fn"])
            and dependence.labels(site["value"]) is not None
        }


def no_terms(enumerated: frozenset[str]) -> str:
    reason = (
        f"enumerated sites outside the plate over rows connect them: {sorted(enumerated)}"
        if enumerated
        else "no observed site is inside a plate over rows"
    )
    return f"log p(x) has no terms by row: {reason}."
