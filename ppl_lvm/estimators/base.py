"""Base class of bounds and gradient estimators.

An estimator is a `pyro.infer.ELBO` with conditions as class attributes and two functions of K
particles of B rows (`ppl_lvm.particles.Particles`):

    bound(particles)      the estimated bound, per row, (B,), nats,
    surrogate(particles)  S, per row, (B,): its gradient, ascended, is the gradient estimator.

The base draws the particles, sums over rows, multiplies by N/B outside the bound, flips the sign,
and returns one tensor whose value is the loss and whose gradient is that of -S:

    loss = -(offset + N/B Σ_b bound_b)     in value,
          -(offset + N/B Σ_b S_b)         in gradient.

An upper bound is descended: its loss is +(offset + N/B Σ_b bound_b).

Learned state belongs to the module. Parameters of submodules are announced to the optimizer as Pyro
announces a module's parameters, decaying averages are buffers, and `state_dict` contains both.
State changes in training mode only (`estimator.eval()` freezes it) and only after its use, so that
a step's update cannot bias the same step.
"""

import warnings
import weakref
from abc import abstractmethod
from collections.abc import Hashable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor, nn

from ppl_lvm.core.arguments import checked
from ppl_lvm.core.validate import Count
from ppl_lvm.estimators.parts.detached_draws import DetachDraws
from ppl_lvm.estimators.parts.jumps import find_jump
from ppl_lvm.estimators.parts.moving_supports import moving_support
from ppl_lvm.estimators.parts.smoothness import smoothness_problem
from ppl_lvm.particles import Particles, analyze_for_particles, draw_particles
from ppl_lvm.particles.bound_estimate import rejection_message
from ppl_lvm.particles.log_prob_tables import PairRun, run_pair
from ppl_lvm.particles.structure import PairStructure, Program
from ppl_lvm.programs.messenger_guide import plain_guide


class Estimator(ELBO, nn.Module):
    """A bound on log p(x) with a gradient estimator.

    The base enforces the following conditions; tests and the table of docs/estimators.md read them.

    Attributes:
        target: name of the bound whose gradient is estimated.
        unbiased: E[∇S] = ∇E[objective] for every accepted K.
        min_particles: least accepted K.
        requires: sites that the guide must have: "any", "reparameterized" only, one "bernoulli"
            and no other, or "discrete" sites that can be relaxed.
        fallback: class to use if a condition fails.
        is_linear: the bound is the mean of log-weights, which stays unbiased if N/B is inside a
            joint log-weight.
        is_upper_bound: the bound is an upper bound and is descended.
        sampling: "particles" of the unmodified guide, or the name of another sampling scheme.
        fixed_draws: densities of all sites are differentiated at fixed draws, so that no support
            may depend on parameters.
        detaches_draws: no gradient passes through draws; points (Delta sites) keep theirs.
        requires_batch_rows: the arguments of the model must be the rows of the batch, with one
            log-weight per row.
        expects_enumerated: the guide's sites that it marks for enumeration are enumerated; other
            estimators draw each site, and refuse such marks.
        non_finite_hint: remedy if the gradient is not finite although all densities are; empty
            if no such case is known.
        cost: runs of guide and model per step.
        paper: authors and year, title, link.

    A subclass keeps each argument of its constructor as an attribute of that name: `describe` and
    run.json read them there.

    Args:
        num_particles: K; default: the least accepted K.
        vectorize_particles: run particles in one pass. By default the first step with a pair
            tests whether its programs allow this. Pass the same callables at every step: wrap
            a program once, not at each step.

    Raises:
        ValueError: too few particles; from a loss: the pair violates a condition.
    """

    target: ClassVar[str]
    unbiased: ClassVar[bool]
    min_particles: ClassVar[int] = 1
    requires: ClassVar[str] = "any"
    fallback: ClassVar[str] = ""
    is_linear: ClassVar[bool] = False
    is_upper_bound: ClassVar[bool] = False
    sampling: ClassVar[str] = "particles"
    fixed_draws: ClassVar[bool] = False
    detaches_draws: ClassVar[bool] = False
    requires_batch_rows: ClassVar[bool] = False
    expects_enumerated: ClassVar[bool] = False
    non_finite_hint: ClassVar[str] = ""
    cost: ClassVar[str] = "K"
    paper: ClassVar[str]

    num_particles: int

    @checked
    def __init__(
        self, num_particles: Count | None = None, vectorize_particles: bool | None = None
    ) -> None:
        nn.Module.__init__(self)
        if num_particles is None:
            num_particles = self.min_particles
        name = type(self).__name__
        if num_particles < self.min_particles:
            alternative = f", or use {self.fallback}" if self.fallback else ""
            raise ValueError(
                f"{name} needs at least {self.min_particles} particle"
                f"{'s' if self.min_particles > 1 else ''}, got num_particles={num_particles}. "
                f"Increase num_particles{alternative}."
            )
        ELBO.__init__(self, num_particles=num_particles)
        self.vectorize_particles = vectorize_particles
        self._structures: dict[Any, PairStructure] = {}
        self._warned = False

    @property
    def is_bound(self) -> bool:
        """E[bound] ≤ log p(x) (≥ for an upper bound) for every accepted K."""
        return True

    @property
    def relaxes_programs(self) -> bool:
        """True if the programs run at relaxed draws."""
        return self.sampling in ("relaxed", "relaxed pair", "straight-through")

    @abstractmethod
    def bound(self, particles: Particles) -> Tensor:
        """Estimated bound per row: (B,), nats."""

    @abstractmethod
    def surrogate(self, particles: Particles) -> Tensor:
        """S, per row: (B,). Ascending its gradient ascends the target."""

    def objective(self, particles: Particles) -> Tensor:
        """Objective that S ascends, per row (B,): the bound unless a class overrides it."""
        return -self.bound(particles) if self.is_upper_bound else self.bound(particles)

    def update_state(self, particles: Particles) -> None:
        """Update averages from particles after their use, in training mode."""

    def draw(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Particles:
        """K particles of this pair."""
        structure = self.analyze(model, guide, args, kwargs)
        drawing = self.draw_handler(structure)
        if self.sampling in ("relaxed", "straight-through"):
            structure = replace(structure, score_sites=())
        particles = draw_particles(
            model, guide, args, kwargs, structure, self.num_particles, drawing=drawing
        )
        particles.drawing = drawing
        return particles

    def draw_handler(self, structure: PairStructure) -> Messenger | None:
        """A new handler that changes the guide's draws in this step, or None."""
        return DetachDraws() if self.detaches_draws else None

    def analyze(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> PairStructure:
        """Structure of the pair, determined and validated once per kind of inputs."""
        inputs = (*args, *kwargs, *kwargs.values())
        programs = [p if isinstance(p, Hashable) else id(p) for p in (model, guide)]
        key = (*programs, *(_kind(value) for value in inputs))
        if key not in self._structures:
            structure = analyze_for_particles(
                model,
                guide,
                args,
                kwargs,
                self.num_particles,
                self.vectorize_particles,
                any_plate=True,
            )
            if self.expects_enumerated:
                structure = structure.with_exact_expectation()
            self.validate(structure)
            run = partial(run_pair, model, guide, args, kwargs, structure)
            self.validate_programs(run, structure)
            if not self.detaches_draws and (jump := find_jump(run, structure)) is not None:
                # Shown once for all callers.
                warnings.warn(jump.message(type(self).__name__), stacklevel=1)
            while len(self._structures) >= 8:
                del self._structures[next(iter(self._structures))]
            self._structures[key] = structure
        return self._structures[key]

    def __getstate__(self) -> dict[str, Any]:
        """Copy the learned state, but not the cached structures of pairs."""
        return {**self.__dict__, "_structures": {}}

    def validate(self, structure: PairStructure) -> None:
        """Reject a pair for which the gradient would be wrong or zero."""
        self._reject_bound_estimate(structure.estimate)
        name = type(self).__name__
        if structure.straight_through:
            site = structure.straight_through[0]
            raise ValueError(
                f"{name} needs gradients of the draws that it scores, but the guide's site "
                f"'{site}' ({structure.latents[site]}) has the gradient of another, relaxed draw. "
                "Use Bernoulli or OneHotCategorical with LeaveOneOut, or with StraightThrough, "
                "which declares this bias."
            )
        if self.expects_enumerated:
            structure = structure.with_exact_expectation()
        self._validate_guide_terms(structure)
        if self.requires == "reparameterized" and structure.score_sites:
            site = structure.score_sites[0]
            raise ValueError(
                f"{name} needs reparameterized draws, but the guide's site '{site}' "
                f"({structure.latents[site]}) has none. Use {self.fallback}."
            )
        if self.requires == "bernoulli":
            random = [n for n in structure.latents if n not in structure.constant]
            if len(random) != 1 or structure.latents[random[0]] != "Bernoulli":
                raise ValueError(
                    f"{name} needs a guide with one Bernoulli site and no other, but it draws "
                    f"{describe_sites(structure, random)}. Use {self.fallback}."
                )
        if self.requires == "discrete":
            self._validate_relaxable_sites(structure)
        if self.requires_batch_rows and structure.data_plate is None:
            raise ValueError(
                f"{name} needs one log-weight per row, but this pair has a joint "
                f"one: {structure.joint_reason}. Use LeaveOneOut or DecayingAverageBaseline."
            )

    def validate_programs(self, run: PairRun, structure: PairStructure) -> None:
        """Reject programs whose derivatives, at fixed or relaxed draws, are wrong."""
        name = type(self).__name__
        sites = structure.latents if self.fixed_draws else structure.score_sites
        site = moving_support(run, sites)
        if site is not None:
            raise ValueError(
                f"{name} differentiates densities at fixed draws, but the support of the guide's "
                f"site '{site}' ({structure.latents[site]}) depends on parameters, which such a "
                "derivative misses. Use "
                + ("a fixed support." if site in structure.score_sites else "ELBO or IWAE.")
            )
        if self.relaxes_programs:
            problem = smoothness_problem(run, structure)
            if problem is not None:
                raise ValueError(
                    f"{name} evaluates the programs at relaxed draws of "
                    f"'{structure.score_sites[0]}', between the values 0 and 1, but {problem}. "
                    "Write it as arithmetic, z * a + (1 - z) * b, or use LeaveOneOut."
                )

    def _validate_guide_terms(self, structure: PairStructure) -> None:
        """Reject enumerated sites and factors of the guide that this estimator has wrong."""
        name = type(self).__name__
        if structure.marked and not structure.expected:
            raise ValueError(
                f"Guide site '{structure.marked[0]}' is marked for enumeration, but {name} draws "
                "the guide's sites. Use TraceEnum_ELBO or ELBO, leave the site out of the guide to "
                "sum it out exactly, or remove the mark."
            )
        if structure.expected and structure.enumerated:
            raise ValueError(
                f"{name} enumerates '{min(structure.expected)}' of the guide or "
                f"'{min(structure.enumerated)}' of the model, not both. Use TraceEnum_ELBO."
            )
        if structure.factors and not structure.scores_factors:
            raise ValueError(
                f"Guide site '{structure.factors[0]}' is a pyro.factor, which is no density, so "
                f"{name} would be no bound. Use Trace_ELBO, TraceEnum_ELBO or ELBO."
            )

    def _validate_relaxable_sites(self, structure: PairStructure) -> None:
        name = type(self).__name__
        if not structure.score_sites:
            raise ValueError(
                f"{name} relaxes discrete draws, but the guide has none: it "
                f"draws {describe_sites(structure)}. Use ELBO."
            )
        for site in structure.score_sites:
            if structure.latents[site] not in ("Bernoulli", "OneHotCategorical"):
                raise ValueError(
                    f"{name} relaxes Bernoulli and OneHotCategorical sites, but the guide's site "
                    f"'{site}' is {structure.latents[site]}. Write it one-hot, or use "
                    f"{self.fallback}."
                )

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{type(self).__name__} computes losses from particles, not from one trace. "
            "Use differentiable_loss."
        )

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """-bound, summed over the data and scaled to N rows: a scalar with the gradient of -S."""
        sign = 1.0 if self.is_upper_bound else -1.0
        particles = self.draw(model, plain_guide(guide), args, kwargs)
        self._reject_bound_estimate(particles.estimate)  # the mode may differ from the analyzed one
        self._warn_of_energy_approximation(particles)
        value = total(self.bound(particles), particles)
        if not torch.is_grad_enabled():
            return sign * value
        surrogate = (self.surrogate(particles) * particles.scale).sum()  # ascended
        self._announce_parameters()
        gradient = surrogate - sign * particles.offset
        if self.training:
            self.update_state(particles)
        loss = sign * value.detach() - (gradient - gradient.detach())
        return torch.where(value.detach().isinf(), sign * value, loss)  # inf - inf is NaN

    def _reject_bound_estimate(self, site: str | None) -> None:
        if site is not None and not self.is_linear:
            raise ValueError(rejection_message(site, type(self).__name__))

    def _warn_of_energy_approximation(self, particles: Particles) -> None:
        if particles.energy_reason is None or self.is_linear or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"{type(self).__name__} is no bound on log p(x) here: {particles.energy_reason}, so "
            "N/B multiplies log-weights and not bounds (the energy approximation). Use all rows "
            "(batch_size=None), or ELBO or LeaveOneOut, which stay unbiased.",
            stacklevel=3,
        )

    def _announce_parameters(self) -> None:
        """Announce the estimator's parameters to parameter collectors such as SVI."""
        for name, parameter in self.named_parameters():
            announce_parameter(f"{type(self).__name__}.{name}", parameter)

    @torch.no_grad()
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """-bound, summed over the data and scaled to N rows, nats."""
        return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """`loss`; its gradient is added to the parameters' `.grad`."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.item()  # a capture records the tensor of item(), not that of float()


def announce_parameter(name: str, parameter: Tensor) -> None:
    """Announce a leaf to parameter collectors, as Pyro announces a module's parameters."""
    alias = parameter.view_as(parameter)
    alias.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
    _parameter(alias, name=name)


@effectful(type="param")
def _parameter(value: Tensor) -> Tensor:
    return value


def _kind(value: Any) -> Hashable:
    """Properties of an input that the pair's structure may depend on."""
    if isinstance(value, Tensor):
        return (value.dim(), value.dtype)
    if isinstance(value, bool | int | float | str):
        return value
    return type(value).__qualname__


def describe_sites(structure: PairStructure, names: list[str] | None = None) -> str:
    """Guide sites with their distributions: "'z' (Normal), 'c' (Categorical)"."""
    names = list(structure.latents) if names is None else names
    return ", ".join(f"'{n}' ({structure.latents[n]})" for n in names) or "nothing"


def total(per_row: Tensor, particles: Particles) -> Tensor:
    """offset + N/B Σ_b of a quantity per row (B,): a scalar."""
    scaled: Tensor = (per_row * particles.scale).sum() + particles.offset
    return scaled
