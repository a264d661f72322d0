"""What every estimator is: a `pyro.infer.ELBO` whose conditions are data on its class.

An estimator gives two functions of K particles of B data (`ppl_lvm.particles.Particles`):

    bound(particles)      what it estimates, per row, (B,), nats,
    surrogate(particles)  S, per row, (B,): its gradient, ascended, is the gradient estimator.

The base draws the particles, sums over data, multiplies with N/B outside the bound, flips the
sign, and makes one tensor whose value is the loss and whose gradient is that of -S:

    loss = -(offset + N/B Σ_b bound_b)     in value,
          -(offset + N/B Σ_b S_b)         in gradient.

An upper bound is descended: its loss is +(offset + N/B Σ_b bound_b).

State that an estimator learns is its own: submodules' parameters are announced to the optimiser
as Pyro announces a module's, decaying averages are buffers, and `state_dict` has all of it. State
changes in training mode only (`estimator.eval()` freezes it), after it was used: what a step adds
to an average cannot bias that step.
"""

import warnings
import weakref
from abc import abstractmethod
from collections.abc import Hashable
from typing import Any, ClassVar

import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor, nn

from ppl_lvm.particles import Particles, analyze_for_particles, draw_particles
from ppl_lvm.particles.bound_estimate import rejection_message
from ppl_lvm.particles.structure import PairStructure, Program


class Estimator(ELBO, nn.Module):
    """A bound on log p(x) and a gradient estimator for it.

    Conditions, read by this base, by the tests and by the README's table:

    Attributes:
        target: the bound whose gradient is estimated, in words.
        unbiased: whether E[∇S] = ∇E[objective] for every K it accepts.
        min_particles: the least K it accepts.
        needs: "any" sites in the guide, "reparameterized" ones only, one "bernoulli" site and no
            other, or "discrete" sites that can be relaxed.
        instead: the class to use where a condition fails.
        linear: whether the bound is the mean of log-weights, the one kind that stays unbiased where
            N/B stands inside a joint log-weight.
        upper: whether the bound is an upper one, to be descended.
        is_bound: whether E[bound] ≤ log p(x) (≥ for an upper bound) holds for every K.
        draws: "particles" of the guide as it is, or another way of drawing, in a word.
        requires_batch_rows: whether it looks at the rows of the batch: the model's arguments must
        be these
            rows, and each must have a log-weight of its own.
        overflow: what to do where its gradient is not finite although every site's density is;
            empty where that is not known to happen.
        cost: runs of guide and model for a step, in words.
        paper: authors and year, title, link.

    Args:
        num_particles: K; by default the least that the class accepts.
        vectorize_particles: whether particles run in one pass. By default they do where the
            program allows it, which is tried when the pair is first seen: give the same callables
            at every step (wrap a program once, not anew each time).

    Raises:
        ValueError: too few particles; from a loss, a pair that the class cannot treat.
    """

    target: ClassVar[str]
    unbiased: ClassVar[bool]
    min_particles: ClassVar[int] = 1
    requires: ClassVar[str] = "any"
    fallback: ClassVar[str] = ""
    is_linear: ClassVar[bool] = False
    is_upper_bound: ClassVar[bool] = False
    is_bound: ClassVar[bool] = True
    sampling: ClassVar[str] = "particles"
    requires_batch_rows: ClassVar[bool] = False
    non_finite_hint: ClassVar[str] = ""
    cost: ClassVar[str] = "K"
    paper: ClassVar[str]

    num_particles: int

    def __init__(
        self, num_particles: int | None = None, vectorize_particles: bool | None = None
    ) -> None:
        nn.Module.__init__(self)
        if num_particles is None:
            num_particles = self.min_particles
        name = type(self).__name__
        if not isinstance(num_particles, int):
            raise ValueError(f"{name} needs a whole number of particles, got {num_particles!r}.")
        if num_particles < self.min_particles:
            or_use = f", or use {self.fallback}" if self.fallback else ""
            raise ValueError(
                f"{name} needs at least {self.min_particles} particle"
                f"{'s' if self.min_particles > 1 else ''}, got num_particles={num_particles}. "
                f"Raise it{or_use}."
            )
        ELBO.__init__(self, num_particles=num_particles)
        self.vectorize_particles = vectorize_particles
        self._plans: dict[Any, PairStructure] = {}
        self._warned = False

    @abstractmethod
    def bound(self, particles: Particles) -> Tensor:
        """What is estimated, per row: (B,), nats."""

    @abstractmethod
    def surrogate(self, particles: Particles) -> Tensor:
        """S, per row: (B,). Ascending its gradient ascends the target."""

    def objective(self, particles: Particles) -> Tensor:
        """What S ascends, per row (B,): the bound, unless a class says otherwise."""
        return -self.bound(particles) if self.is_upper_bound else self.bound(particles)

    def update_state(self, particles: Particles) -> None:
        """Update averages from particles that were used. Called in training mode."""

    def draw(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Particles:
        """K particles of this pair."""
        plan = self.plan(model, guide, args, kwargs)
        drawing = self.draw_handler()
        return draw_particles(model, guide, args, kwargs, plan, self.num_particles, drawing=drawing)

    def draw_handler(self) -> Messenger | None:
        """A handler that changes how the guide draws, new for every step; None for as it is."""
        return None

    def plan(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> PairStructure:
        """The pair's structure; found out and checked when it is first seen with such inputs."""
        inputs = (*args, *kwargs, *kwargs.values())
        programs = [p if isinstance(p, Hashable) else id(p) for p in (model, guide)]
        key = (*programs, *(_kind(value) for value in inputs))
        if key not in self._plans:
            plan = analyze_for_particles(
                model, guide, args, kwargs, self.num_particles, self.vectorize_particles
            )
            self.validate(plan)
            while len(self._plans) >= 8:
                del self._plans[next(iter(self._plans))]
            self._plans[key] = plan
        return self._plans[key]

    def __getstate__(self) -> dict[str, Any]:
        """A copy has the learned state, and finds out the structure of its pairs by itself."""
        return {**self.__dict__, "_plans": {}}

    def validate(self, plan: PairStructure) -> None:
        """Refuse a pair that this estimator would give a wrong or zero gradient."""
        self._refuse_estimate(plan.estimate)
        if self.requires == "reparameterized" and plan.score_sites:
            site = plan.score_sites[0]
            raise ValueError(
                f"{type(self).__name__} needs reparameterised draws, but the guide's site '{site}' "
                f"({plan.latents[site]}) has none. Use {self.fallback}."
            )
        if self.requires == "bernoulli":
            random = [n for n in plan.latents if n not in plan.constant]
            if len(random) != 1 or plan.latents[random[0]] != "Bernoulli":
                kinds = ", ".join(f"'{n}' ({plan.latents[n]})" for n in random)
                raise ValueError(
                    f"{type(self).__name__} needs a guide with one Bernoulli site and no other, "
                    f"but it draws {kinds or 'nothing'}. Use {self.fallback}."
                )
        if self.requires == "discrete":
            if not plan.score_sites:
                kinds = ", ".join(f"'{n}' ({kind})" for n, kind in plan.latents.items())
                raise ValueError(
                    f"{type(self).__name__} relaxes discrete draws, but the guide has none: it "
                    f"draws {kinds or 'nothing'}. Use ELBO."
                )
            for site in plan.score_sites:
                if plan.latents[site] not in ("Bernoulli", "OneHotCategorical"):
                    raise ValueError(
                        f"{type(self).__name__} relaxes Bernoulli and OneHotCategorical sites, but "
                        f"the guide's site '{site}' is {plan.latents[site]}. Write it one-hot, or "
                        f"use {self.fallback}."
                    )
        if self.requires_batch_rows and plan.data_plate is None:
            raise ValueError(
                f"{type(self).__name__} needs one log-weight per row, but this pair has a joint "
                f"one: {plan.joint_reason}. Use LeaveOneOut or DecayingAverageBaseline."
            )

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} works on particles, not on one trace.")

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """-bound, summed over data and scaled to N rows: a scalar with the estimator's gradient."""
        sign = 1.0 if self.is_upper_bound else -1.0
        particles = self.draw(model, guide, args, kwargs)
        self._refuse_estimate(particles.estimate)  # a plan may have seen the other mode
        self._warn_of_energy(particles)
        value = total(self.bound(particles), particles)
        if not torch.is_grad_enabled():
            return sign * value
        surrogate = self.surrogate(particles).sum() * particles.scale  # ascended
        self._announce()
        gradient = surrogate - sign * particles.offset
        if self.training:
            self.update_state(particles)
        return sign * value.detach() - (gradient - gradient.detach())

    def _refuse_estimate(self, site: str | None) -> None:
        if site is not None and not self.is_linear:
            raise ValueError(rejection_message(site, type(self).__name__))

    def _warn_of_energy(self, particles: Particles) -> None:
        if particles.energy_reason is None or self.is_linear or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"{type(self).__name__} is no bound on log p(x) here: {particles.energy_reason}, so "
            "N/B multiplies log-weights and not bounds (the energy approximation). Use "
            "the whole data, "
            "or ELBO or LeaveOneOut, which stay unbiased.",
            stacklevel=3,
        )

    def _announce(self) -> None:
        """Show the estimator's own parameters to whoever collects parameters, as SVI does."""
        for name, parameter in self.named_parameters():
            alias = parameter.view_as(parameter)
            alias.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
            _parameter(alias, name=f"{type(self).__name__}.{name}")

    @torch.no_grad()
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """-bound, summed over data and scaled to N rows, nats."""
        return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """`loss`, with its gradient added to the parameters' `.grad`."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.item()  # the engine's recording keeps the tensor of an item(), not of a float()


@effectful(type="param")
def _parameter(value: Tensor) -> Tensor:
    return value


def _kind(value: Any) -> Hashable:
    """What the structure of a pair may depend on: a tensor's type, a plain value itself."""
    if isinstance(value, Tensor):
        return (value.dim(), value.dtype)
    if isinstance(value, bool | int | float | str):
        return value
    return type(value).__qualname__


def total(per_row: Tensor, particles: Particles) -> Tensor:
    """offset + N/B Σ_b of a quantity per row (B,): a scalar."""
    scaled: Tensor = per_row.sum() * particles.scale + particles.offset
    return scaled
