"""Run the guide, replay the model: what K draws carry, per site, particle and datum.

    pair = make_plan(model, guide, batch, {})             # once
    p = draw_particles(model, guide, batch, {}, pair, K)  # every step
    log_w = log_weights(model, guide, *batch, num_particles=K)   # in one call, without gradients

Dimension 0 of every table is the particle, dimension 1 the datum:

    log_w[k, b] = log p(x_b, z_kb) - log q(z_kb | x_b)        (K, B)

where everything inside a datum (event dimensions, inner plates, sequences) is summed, and discrete
sites that only the model has are summed out exactly, inside log p. Where something random stands
outside the data plate there is one joint log-weight per particle, shape (K, 1).

A mini-batch of B rows that stands for N has `scale` N/B. It multiplies each datum's bound, outside
any log-mean-exp. A joint log-weight can only have it inside: then `energy` says so, and F = mean
stays unbiased while no other F is a bound (Li, Gal 2017 call it the energy approximation).

The user's own poutine.scale (what remains of a site's scale without the plates' ratios) tempers
log p and log q inside log_w; poutine.mask zeroes them. The score keeps log q as it was drawn.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_lvm.particles.estimate import refusal
from ppl_lvm.particles.plan import Plan, Program, make_plan
from ppl_lvm.particles.tables import Tables, inside_scale, run_pair, tabulate
from ppl_lvm.particles.traces import Sites, is_one, log_prob, plate_dim, table, temper
from ppl_lvm.particles.vectorize import why_not_vectorized


@dataclass(frozen=True)
class Draw:
    """One site of the guide, drawn K times.

    Attributes:
        value: (K, ...) as the program drew it.
        reparameterized: whether gradients flow through `value`.
        is_local: inside the data plate.
        log_q: (K, B), or (K, 1) if global or joint; tempered.
        log_p: the same of the model's site; None where it is auxiliary or summed out.
        is_constant: a point outside the data plate, which counts in the offset only.
        score: like log_q, but neither scaled nor masked: the density it was drawn from.
        analytic: computes E_q[log p - log q] of this site given those drawn before it, (K, B), or
            None where no closed form is valid.
    """

    value: Tensor
    reparameterized: bool
    is_local: bool
    log_q: Tensor
    log_p: Tensor | None
    score: Tensor
    is_constant: bool = False
    analytic: Callable[[], Tensor | None] = lambda: None


@dataclass
class Particles:
    """K particles of B data.

    Attributes:
        log_p: (K, B) log p(x, z), discrete sites that only the model has summed out.
        log_q: (K, B) log q(z | x).
        score: (K, B) log q of the sites without a reparameterised draw, as they were drawn; None
            if there are none.
        log_q_path: (K, B) the part of log_q that belongs to the other, reparameterised sites. The
            rest has a gradient of mean zero, which the mean of log-weights may leave out.
        draws: the guide's sites by name.
        log_likelihood: (K, B) what log_p has beside the draws' own `log_p`.
        scale: N/B, to multiply each datum's bound with.
        offset: what no draw changes, already scaled; added to the sum of bounds.
        energy: why this is the energy approximation and not a bound; None if it is a bound.
        estimate: the site that makes log_w an estimate of a bound, whose mean alone has a meaning;
            None where log_w is a log-weight.
        tempered: whether poutine.scale or mask makes log_q another function than the density of
            the draws.
        aside: what an estimator that draws in its own way keeps beside the draws.
        rescore: scores the same particles again on detached values, with other values, (K, ...),
            in place of some: gradients reach parameters and these values, and go through no draw.
            Points (Delta sites) are functions of parameters and draws, and stay so.
    """

    log_p: Tensor
    log_q: Tensor
    score: Tensor | None = None
    log_q_path: Tensor = None  # type: ignore[assignment]  # set below
    draws: Mapping[str, Draw] = field(default_factory=dict)
    log_likelihood: Tensor | None = None
    scale: Any = 1.0
    offset: Tensor | float = 0.0
    energy: str | None = None
    estimate: str | None = None
    tempered: bool = False
    aside: Mapping[str, Any] = field(default_factory=dict)
    rescore: Callable[[Mapping[str, Tensor]], "Particles"] | None = None

    def __post_init__(self) -> None:
        if self.log_q_path is None:
            self.log_q_path = self.log_q if self.score is None else torch.zeros_like(self.log_q)

    @property
    def log_w(self) -> Tensor:
        """(K, B) log-weights."""
        return self.log_p - self.log_q

    @cached_property
    def _held(self) -> "Particles":
        has_path = any(draw.value.requires_grad for draw in self.draws.values())
        return self.rescore({}) if has_path and self.rescore is not None else self

    @property
    def log_p_held(self) -> Tensor:
        """(K, B) log p with the values held still: its gradient is the parameters' own."""
        return self._held.log_p

    @property
    def log_q_held(self) -> Tensor:
        """(K, B) log q with the values held still: its gradient is the score."""
        return self._held.log_q

    @property
    def log_q_still(self) -> Tensor:
        """(K, B) log q with the guide's parameters held still: gradients through draws only."""
        return self.log_q - (self.log_q_held - self.log_q_held.detach())

    @property
    def tempering_held(self) -> Tensor | float:
        """(K, B) log_q less the density of the draws, values held still; 0 if not tempered."""
        if not self.tempered:
            return 0.0
        drawn = sum(draw.score for draw in self._held.draws.values() if not draw.is_constant)
        return self.log_q_held - drawn


def _analytic(
    name: str, guide: Sites, model: Sites, plan: Plan, absorbed: bool
) -> Callable[[], Tensor | None]:
    """E_q[s_p log p - s_q log q] of one site in closed form, where that is valid.

    With scales s it is -s_q KL(q || p) + (s_p - s_q) log p. Averaging over this draw alone is
    valid if no site that precedes it in the model follows it in the guide: only then is p's
    distribution fixed before the draw.
    """

    def compute() -> Tensor | None:
        if absorbed or name in plan.constant:
            return None
        order, in_model = list(guide), [n for n in model if n in guide]
        earlier = set(in_model[: in_model.index(name)])
        q, p = guide[name], model[name]
        if _is_delta(q["fn"]):
            return None
        if not earlier <= set(order[: order.index(name)]) or q["mask"] is not p["mask"]:
            return None
        try:
            kl = kl_divergence(q["fn"], p["fn"])
        except NotImplementedError:
            return None
        scale_q, scale_p = inside_scale(q, plan), inside_scale(p, plan)
        value = temper(-kl, scale_q, None)
        if not (is_one(scale_p) and is_one(scale_q)):
            value = value + (scale_p - scale_q) * log_prob(p)
        value = temper(value, 1.0, q["mask"])
        return table(value, plan.nesting, plate_dim(q, plan.data_plate))

    return compute


def _is_delta(fn: Any) -> bool:
    """Whether it is a point mass, whose KL in closed form forgets the density it stands for.

    Pyro's automatic guides give a site the value of a pushed normal as `Delta(value, log_density)`.
    """
    while not isinstance(fn, Delta) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def _one_pass(guide: Sites, model: Sites, plan: Plan, vectorized: bool) -> Particles:
    """Particles from one pair of runs: K of them if vectorised, else one."""
    tables = tabulate(guide, model, plan, vectorized)
    draws = {
        name: Draw(
            value=guide[name]["value"] if vectorized else guide[name]["value"].unsqueeze(0),
            reparameterized=name not in plan.score_sites,
            is_local=plate_dim(guide[name], plan.data_plate) is not None,
            log_q=log_q,
            log_p=tables.log_p.get(name),
            score=tables.score[name],
            is_constant=name in plan.constant,
            analytic=_analytic(name, guide, model, plan, absorbed=name not in tables.log_p),
        )
        for name, log_q in tables.log_q.items()
    }
    drawn = [d for d in draws.values() if not d.is_constant]
    log_p = _sum([d.log_p for d in drawn])
    rest = [v for n, v in tables.log_p.items() if n not in draws and n not in plan.constant]
    likelihood = _sum([*rest, tables.marginal])
    log_q = _sum([d.log_q for d in drawn])
    score = _sum([d.score for d in drawn if not d.reparameterized])
    path = _sum([d.log_q for d in drawn if d.reparameterized])
    shape, like = _common_shape([log_p, likelihood, log_q])

    def full(part: Tensor | None) -> Tensor:
        return like if part is None else part.expand(shape)

    return Particles(
        log_p=full(log_p) + full(likelihood),
        log_q=full(log_q),
        score=None if score is None else full(score),
        log_q_path=full(path),
        draws=draws,
        log_likelihood=full(likelihood),
        scale=tables.scale,
        offset=_offset(tables, plan),
        energy=tables.energy,
        estimate=tables.estimate,
        tempered=any(d.score is not d.log_q for d in drawn),
    )


def _sum(parts: list[Tensor | None]) -> Tensor | None:
    present = [p for p in parts if p is not None]
    return sum(present[1:], start=present[0]) if present else None


def _common_shape(parts: list[Tensor | None]) -> tuple[torch.Size, Tensor]:
    """(K, B) of all tables, and zeros of that shape for a part that a program lacks."""
    present = [p for p in parts if p is not None]
    if not present:
        raise ValueError("The model has no sample site that takes part in the bound.")
    K, B = (max(p.shape[d] for p in present) for d in (0, 1))
    shape = torch.Size((K, B))
    return shape, present[0].new_zeros(shape)


def _offset(tables: Tables, plan: Plan) -> Tensor | float:
    """The bound's part that no draw changes: alike in every particle, so the first one's."""
    offset: Tensor | float = 0.0
    for name in sorted(plan.constant):
        if name in tables.log_p:
            offset = offset + tables.log_p[name][0].sum()
        if name in tables.log_q:
            offset = offset - tables.log_q[name][0].sum()
    return offset


def _stack(passes: list[Particles]) -> Particles:
    """Particles of a loop, one below the other."""
    first = passes[0]

    def cat(parts: list[Tensor | None]) -> Tensor | None:
        tensors = [p for p in parts if p is not None]
        return torch.cat(tensors) if len(tensors) == len(parts) else None

    def together(name: str) -> Draw:
        each = [p.draws[name] for p in passes]
        return Draw(
            value=torch.cat([d.value for d in each]),
            reparameterized=each[0].reparameterized,
            is_local=each[0].is_local,
            log_q=torch.cat([d.log_q for d in each]),
            log_p=cat([d.log_p for d in each]),
            score=torch.cat([d.score for d in each]),
            is_constant=each[0].is_constant,
            analytic=lambda: cat([d.analytic() for d in each]),
        )

    return Particles(
        log_p=torch.cat([p.log_p for p in passes]),
        log_q=torch.cat([p.log_q for p in passes]),
        score=cat([p.score for p in passes]),
        log_q_path=torch.cat([p.log_q_path for p in passes]),
        draws={name: together(name) for name in first.draws},
        log_likelihood=cat([p.log_likelihood for p in passes]),
        scale=first.scale,
        offset=first.offset,
        energy=first.energy,
        estimate=first.estimate,
        tempered=first.tempered,
    )


def _repeat(particles: Particles, num_particles: int) -> Particles:
    """K equal particles, where nothing is drawn."""
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
    plan: Plan,
    num_particles: int,
    *,
    drawing: Messenger | None = None,
) -> Particles:
    """Draw K particles from the guide and score them under model and guide.

    All particles see one sub-sample of the data. `drawing` is a handler around both programs that
    changes how the guide's sites are drawn (antithetic, relaxed).
    """
    sizes = [num_particles] if plan.vectorized and num_particles > 1 else [None] * num_particles
    if not plan.latents:
        sizes = [None]  # nothing is drawn: all particles are alike
    subsamples: dict[str, Any] = {}
    passes: list[Particles] = []
    runs: list[dict[str, Any]] = []
    for size in sizes:
        guide_sites, model_sites = run_pair(
            model, guide, args, kwargs, plan, size, values=subsamples or None, drawing=drawing
        )
        passes.append(_one_pass(guide_sites, model_sites, plan, vectorized=size is not None))
        everything = {**model_sites, **guide_sites}
        subsamples = {n: s["value"] for n, s in everything.items() if site_is_subsample(s)}
        values = {n: _detached(s["value"]) for n, s in guide_sites.items()}
        runs.append({**subsamples, **values})
    particles = passes[0] if len(passes) == 1 else _stack(passes)
    if not plan.latents:
        particles = _repeat(particles, num_particles)

    def rescore(others: Mapping[str, Tensor]) -> Particles:
        again = []
        for k, (size, values) in enumerate(zip(sizes, runs, strict=True)):
            new = {n: v[k] if size is None else v for n, v in others.items()}
            sites = run_pair(model, guide, args, kwargs, plan, size, values={**values, **new})
            again.append(_one_pass(*sites, plan, vectorized=size is not None))
        return again[0] if len(again) == 1 else _stack(again)

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
    plan: Plan | None = None,
    **kwargs: Any,
) -> Tensor:
    """log p(x_b, z_kb) - log q(z_kb | x_b) of K draws, without gradients: (K, B), joint (K, 1).

    `plan` saves finding out the pair's structure again at every call (see `plan_pair`).

    Raises:
        ValueError: the model, in training mode, has estimates in place of log-weights.
    """
    with torch.no_grad():
        if plan is None:
            plan = plan_pair(model, guide, args, kwargs, num_particles, vectorize_particles)
        particles = draw_particles(model, guide, args, kwargs, plan, num_particles)
        if particles.estimate is not None:
            raise ValueError(refusal(particles.estimate, "A log-weight"))
        return particles.log_w


def plan_pair(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_particles: int,
    vectorize_particles: bool | None = None,
) -> Plan:
    """The pair's structure, and whether its particles may be vectorised.

    `vectorize_particles` True or False is obeyed. By default the programs are tried: vectorised
    particles must score as plain runs score the same values, else they run in a loop, with one
    warning that names the site.
    """
    plan = make_plan(model, guide, args, kwargs)
    if vectorize_particles is not None:
        return replace(plan, vectorized=vectorize_particles)
    if num_particles == 1:
        return plan
    problem = why_not_vectorized(model, guide, args, kwargs, plan, min(num_particles, 3))
    if problem is None:
        return replace(plan, vectorized=True)
    warnings.warn(
        f"Particles run one by one, because {problem}. Write the program so that it accepts "
        "extra dimensions on the left (index from the right, as in z[..., 0]), or pass "
        "vectorize_particles=False to accept the loop.",
        stacklevel=2,
    )
    return plan
