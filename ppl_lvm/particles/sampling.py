"""Draw particles: run the guide, replay the model.

    structure = analyze_pair(model, guide, batch, {})             # once
    p = draw_particles(model, guide, batch, {}, structure, K)     # every step
    log_w = log_weights(model, guide, *batch, num_particles=K)    # in one call, without gradients

`particles.py` documents the attributes and shapes.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import is_point
from ppl_lvm.core.messages import warn_once
from ppl_lvm.particles.analytic_kl import closed_form
from ppl_lvm.particles.bound_estimate import rejection_message
from ppl_lvm.particles.layout import row_axis
from ppl_lvm.particles.log_prob_tables import Tables, run_pair, tabulate
from ppl_lvm.particles.particles import Particles, SiteDraws
from ppl_lvm.particles.score_terms import ScoreTerm, score_terms
from ppl_lvm.particles.structure import PairStructure, Program, analyze_pair
from ppl_lvm.particles.tracing import Sites, plate_dim
from ppl_lvm.particles.vectorize import why_not_vectorized
from ppl_lvm.programs.minibatch import ScaleDataPlate, num_rows

_TESTED = 3  # particles compared with single runs; one number, so that all callers warn alike


def _one_pass(guide: Sites, model: Sites, structure: PairStructure, vectorized: bool) -> Particles:
    """Particles of one run of guide and model: K of them if vectorized, else one."""
    tables = tabulate(guide, model, structure, vectorized)
    draws = {
        name: SiteDraws(
            value=guide[name]["value"] if vectorized else guide[name]["value"].unsqueeze(0),
            reparameterized=name not in structure.score_sites,
            is_local=plate_dim(guide[name], structure.data_plate) is not None,
            log_q=log_q,
            log_p=tables.log_p.get(name),
            score=tables.score[name],
            is_constant=name in structure.constant,
            is_point=is_point(guide[name]["fn"]),
            row_axis=row_axis(guide[name], structure.data_plate or structure.row_plates),
            analytic=closed_form(name, guide, model, structure, absorbed=name not in tables.log_p),
        )
        for name, log_q in tables.log_q.items()
    }
    random = [d for d in draws.values() if not d.is_constant]
    log_p = _sum([d.log_p for d in random])
    rest = [v for n, v in tables.log_p.items() if n not in draws and n not in structure.constant]
    likelihood = _sum([*rest, tables.marginal])
    log_q = _sum([d.log_q for d in random])
    score = _sum([d.score for d in random if not d.reparameterized])
    path = _sum([d.log_q for d in random if d.reparameterized])
    shape, like = _common_shape([log_p, likelihood, log_q])

    def full(part: Tensor | None) -> Tensor:
        return like if part is None else part.expand(shape)

    return Particles(
        log_p=full(log_p) + full(likelihood),
        log_q=full(log_q),
        score=None if score is None else full(score),
        log_q_path=full(path),
        site_draws=draws,
        log_likelihood=full(likelihood),
        scale=tables.scale,
        offset=_offset(tables, structure),
        energy_reason=tables.energy_reason,
        estimate=tables.estimate,
        tempered=any(d.is_point or d.score is not d.log_q for d in random),
        compute_score_terms=partial(score_terms, guide, model, structure, tables),
    )


def _sum(parts: list[Tensor | None]) -> Tensor | None:
    present = [p for p in parts if p is not None]
    return sum(present[1:], start=present[0]) if present else None


def _common_shape(parts: list[Tensor | None]) -> tuple[torch.Size, Tensor]:
    """The common shape (K, B) of all tables, and zeros of that shape for missing parts."""
    present = [p for p in parts if p is not None]
    if not present:
        raise ValueError(
            "The model has no sample site with a density. Add one with pyro.sample(..., obs=x)."
        )
    K, B = (max(p.shape[d] for p in present) for d in (0, 1))
    shape = torch.Size((K, B))
    return shape, present[0].new_zeros(shape)


def _offset(tables: Tables, structure: PairStructure) -> Tensor | float:
    """Terms of the bound that no draw changes, equal in all particles: those of the first."""
    offset: Tensor | float = 0.0
    for name in sorted(structure.constant):
        if name in tables.log_p:
            offset = offset + tables.log_p[name][0].sum()
        if name in tables.log_q:
            offset = offset - tables.log_q[name][0].sum()
    return offset


def _stack(passes: list[Particles]) -> Particles:
    """Concatenate the particles of a loop."""
    first = passes[0]

    def cat(parts: list[Tensor | None]) -> Tensor | None:
        tensors = [p for p in parts if p is not None]
        return torch.cat(tensors) if len(tensors) == len(parts) else None

    def stack_site(name: str) -> SiteDraws:
        draws = [p.site_draws[name] for p in passes]
        return SiteDraws(
            value=torch.cat([d.value for d in draws]),
            reparameterized=draws[0].reparameterized,
            is_local=draws[0].is_local,
            log_q=torch.cat([d.log_q for d in draws]),
            log_p=cat([d.log_p for d in draws]),
            score=torch.cat([d.score for d in draws]),
            is_constant=draws[0].is_constant,
            is_point=draws[0].is_point,
            row_axis=draws[0].row_axis,
            analytic=lambda: cat([d.analytic() for d in draws]),
        )

    def stack_score_terms() -> tuple[ScoreTerm, ...]:
        return tuple(
            ScoreTerm(
                torch.cat([t.score for t in terms]),
                torch.cat([t.cost for t in terms]),
                terms[0].row_dim,
            )
            for terms in zip(*(p.score_terms for p in passes), strict=True)
        )

    return Particles(
        log_p=torch.cat([p.log_p for p in passes]),
        log_q=torch.cat([p.log_q for p in passes]),
        score=cat([p.score for p in passes]),
        log_q_path=torch.cat([p.log_q_path for p in passes]),
        site_draws={name: stack_site(name) for name in first.site_draws},
        log_likelihood=cat([p.log_likelihood for p in passes]),
        scale=first.scale,
        offset=first.offset,
        energy_reason=first.energy_reason,
        estimate=first.estimate,
        tempered=first.tempered,
        compute_score_terms=stack_score_terms,
    )


def _repeat(particles: Particles, num_particles: int) -> Particles:
    """K equal particles of a guide without draws."""
    shape = (num_particles, particles.log_p.shape[1])
    return replace(
        particles,
        log_p=particles.log_p.expand(shape),
        log_q=particles.log_q.expand(shape),
        log_q_path=particles.log_q_path.expand(shape),
        log_likelihood=particles.log_p.expand(shape),
    )


def draw_particles(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    structure: PairStructure,
    num_particles: int,
    *,
    drawing: Messenger | None = None,
) -> Particles:
    """Draw K particles from the guide and score them under model and guide.

    All particles share one subsample of the rows. `drawing` is a handler around both programs that
    changes how the guide's sites are drawn (antithetic, relaxed).
    """
    sizes = (
        [num_particles] if structure.vectorized and num_particles > 1 else [None] * num_particles
    )
    if not structure.latents:
        sizes = [None]  # without draws all particles are equal
    run = partial(run_pair, model, guide, args, kwargs, structure)
    subsamples: dict[str, Any] = {}
    passes: list[Particles] = []
    runs: list[dict[str, Any]] = []
    for size in sizes:
        guide_sites, model_sites = run(size, values=subsamples or None, drawing=drawing)
        passes.append(_one_pass(guide_sites, model_sites, structure, vectorized=size is not None))
        sites = {**model_sites, **guide_sites}
        subsamples = {n: s["value"] for n, s in sites.items() if site_is_subsample(s)}
        values = {n: _detached(s["value"]) for n, s in guide_sites.items()}
        runs.append({**subsamples, **values})
    particles = passes[0] if len(passes) == 1 else _stack(passes)
    if not structure.latents:
        particles = _repeat(particles, num_particles)

    def rescore(replacements: Mapping[str, Tensor]) -> Particles:
        rescored = []
        for k, (size, values) in enumerate(zip(sizes, runs, strict=True)):
            new = {n: v[k] if size is None else v for n, v in replacements.items()}
            sites = run(size, values={**values, **new})
            rescored.append(_one_pass(*sites, structure, vectorized=size is not None))
        return rescored[0] if len(rescored) == 1 else _stack(rescored)

    particles.rescore = rescore
    return particles


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def log_weights(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int = 1,
    vectorize_particles: bool | None = None,
    structure: PairStructure | None = None,
    **kwargs: Any,
) -> Tensor:
    """log p(x_b, z_kb) - log q(z_kb | x_b) of K draws, without gradients: (K, B), joint (K, 1).

    The rows of `args` stand for themselves, also where a plate says that they stand for more. Pass
    `structure` (from `analyze_for_particles`) to avoid a new analysis at every call.

    Raises:
        ValueError: the model scores estimates of a bound (in training mode).
    """
    with torch.no_grad():
        if structure is None:
            structure = analyze_for_particles(
                model, guide, args, kwargs, num_particles, vectorize_particles
            )
        rows = num_rows(args)
        if rows is not None:
            alone = ScaleDataPlate(rows, structure.row_plates)
            model, guide = alone(model), alone(guide)
        particles = draw_particles(model, guide, args, kwargs, structure, num_particles)
        if particles.estimate is not None:
            raise ValueError(rejection_message(particles.estimate, "A log-weight"))
        return particles.log_w


def analyze_for_particles(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_particles: int,
    vectorize_particles: bool | None = None,
    *,
    any_plate: bool = False,
) -> PairStructure:
    """The structure of a pair, with `vectorized` decided.

    `vectorize_particles` True or False decides. By default vectorized particles are compared with
    single runs on the same values. If they differ, particles run in a loop, and one warning names
    the site. `any_plate`: see `analyze_pair`.
    """
    structure = analyze_pair(model, guide, args, kwargs, any_plate=any_plate)
    if vectorize_particles is not None:
        return replace(structure, vectorized=vectorize_particles)
    if num_particles == 1:
        return structure
    run = partial(run_pair, model, guide, args, kwargs, structure)
    problem = why_not_vectorized(run, structure, _TESTED)
    if problem is None:
        return replace(structure, vectorized=True)
    warn_once(
        f"Particles run one by one, because {problem}. The results are the same, and slower. Let "
        "the program accept extra dimensions on the left (index from the right, as in z[..., 0])."
    )
    return structure
