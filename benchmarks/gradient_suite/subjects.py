"""Subjects of the gradient benchmark: pairs with batches and targets."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppl_lvm import estimators
from ppl_lvm.benchmarks.gradient_suite import samples
from ppl_lvm.benchmarks.gradient_suite.handwritten_adapters import handwritten
from ppl_lvm.benchmarks.gradient_suite.implementations import Implementation, ours, pyros
from ppl_lvm.benchmarks.gradient_suite.programs import KnownProgram, handwritten_parameters
from ppl_lvm.benchmarks.gradient_suite.targets import true_gradient
from ppl_lvm.core.call_syntax import parse_settings
from ppl_lvm.data import load_data
from ppl_lvm.programs.minibatch import ScaleDataPlate
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.sources import GuideFactory, ModelFactory

REFERENCE_NUMBERS = 100_000_000  # limit for each target: 400 MB
MANY_PARTICLES = 500  # approximates the limit of a consistent estimator
SUBSAMPLED = 10  # N / B of the mini-batch tests


@dataclass
class BenchmarkPair:
    """A prepared pair; `known` is None for a user's pair, whose targets are estimated.

    Attributes:
        nesting: number of plate dimensions; Pyro's particle plate is to the left of them.
        references: draws (n, P) whose mean is the target, by name of the bound.
    """

    name: str
    pair: ModelGuidePair
    batch: tuple[Tensor, ...]
    num_particles: int
    known: KnownProgram | None = None
    nesting: int = 1
    references: dict[str, Tensor] = field(default_factory=dict)

    def implementations(self) -> Iterator[Implementation]:
        """All implementations: ours, Pyro's, hand-written."""
        yield from ours(self.pair, self.num_particles)
        yield from pyros(self.pair, self.num_particles, self.nesting)
        if self.known is not None:
            yield from handwritten(self.known, self.pair, self.num_particles)

    def subsampled(self, rows: int) -> Iterator[Implementation]:
        """Ours and Pyro's for a batch of `rows` out of SUBSAMPLED × `rows`."""
        scale = ScaleDataPlate(SUBSAMPLED * rows)
        programs = SimpleNamespace(model=scale(self.pair.model), guide=scale(self.pair.guide))
        yield from ours(programs, self.num_particles)
        yield from pyros(programs, self.num_particles, self.nesting)

    def is_finite(self, implementation: Implementation) -> bool:
        """True if its mean is a finite sum, computed row by row."""
        return self.known is not None and self.known.states is not None and implementation.forced

    def exact_mean(self, implementation: Implementation) -> tuple[Tensor, float] | None:
        """Mean gradient and bound by a finite sum, or None."""
        known = self.known
        if not self.is_finite(implementation) or known is None or known.states is None:
            return None
        x, params = self.batch[0], handwritten_parameters(self.pair.unconstrained_parameters)
        states = known.states.to(x)
        log_q = known.module.log_q(params, x, states.expand(-1, len(x), -1)).detach()
        step = samples.steady(implementation.step, implementation.objective)
        return samples.enumerate_draws(
            step, x, self.pair.unconstrained_parameters, states, log_q, self.num_particles
        )

    def target(self, implementation: Implementation) -> tuple[Tensor, Tensor | None] | None:
        """Target gradient (P,), and the draws it was estimated from (None if exact).

        None without a target.
        """
        if self.known is None:
            reference = self.references.get(_reference_target(implementation.target))
            return None if reference is None else (reference.mean(0), reference)
        vector = true_gradient(
            self.known,
            self.pair.unconstrained_parameters,
            self.batch[0],
            implementation,
            self.num_particles,
        )
        return None if vector is None else (vector, None)

    def log_evidence(self) -> tuple[float, float]:
        """log p(x) summed over the batch, and its error bound: exact, or from 2,000 particles."""
        if self.known is not None:
            params = handwritten_parameters(self.pair.unconstrained_parameters)
            return self.known.module.log_evidence(params, self.batch[0]).sum().item(), 0.0
        objective = estimators.VIMCO(num_particles=2000)
        pair, batch = self.pair, self.batch
        draws = torch.tensor([-objective.loss(pair.model, pair.guide, *batch) for _ in range(8)])
        return draws.mean().item(), 3 * draws.std().item()

    def estimate_references(self, repeats: int) -> None:
        """For each target, draw from our first estimator that is valid for it.

        Valid estimators declare `unbiased`. Targets with consistent estimators only (TVO, the guide
        of wake-sleep) use MANY_PARTICLES.
        """
        size = sum(leaf.numel() for leaf in self.pair.unconstrained_parameters.values())
        repeats = max(100, min(repeats, REFERENCE_NUMBERS // size))
        for implementation in ours(self.pair, self.num_particles):
            if implementation.target not in self.references and implementation.declared:
                self._refer(implementation, repeats)
        for implementation in ours(self.pair, MANY_PARTICLES):
            if implementation.target not in self.references and not implementation.declared:
                self._refer(implementation, max(100, repeats * self.num_particles // 50))
        wake = next((t for t in self.references if "KL(p" in t), None)
        if wake is not None:  # the model's gradient is that of IWAE with K particles
            of_model = ~self._of_guide()
            size = min(len(self.references[wake]), len(self.references["IWAE"]))
            mixed = self.references[wake][:size].clone()
            mixed[:, of_model] = self.references["IWAE"][:size, of_model]
            self.references[wake] = mixed
            self.references["wake"] = mixed  # name of Pyro's target

    def _refer(self, implementation: Implementation, repeats: int) -> None:
        if _reference_target(implementation.target) != implementation.target:
            return
        try:
            draws, _ = samples.sample(
                implementation.step, self.batch, self.pair.unconstrained_parameters, repeats
            )
        except (ValueError, NotImplementedError):
            return  # rejects this pair; the next estimator is tried
        self.references[implementation.target] = draws

    def _of_guide(self) -> Tensor:
        """Mask of the gradient entries of parameters that log q depends on, (P,)."""
        pair = self.pair
        groups = samples.groups(pair.model, pair.guide, self.batch, pair.unconstrained_parameters)
        mask = torch.zeros(
            sum(leaf.numel() for leaf in pair.unconstrained_parameters.values()), dtype=torch.bool
        )
        for name, where in groups.items():
            if name.startswith("guide"):
                mask[where] = True
        return mask


def _reference_target(target: str) -> str:
    """A relaxed objective is compared with the discrete one."""
    return "ELBO" if target == "relaxed ELBO" else target


def known_subject(known: KnownProgram, num_particles: int, seed: int) -> BenchmarkPair:
    """One of the three programs, in the default dtype."""
    params = known.parameters(seed)
    pair = ModelGuidePair(known.model(params), known.guide(params), Trace_ELBO())
    batch = (known.data(seed),)
    pair.materialize_parameters(*batch)
    return BenchmarkPair(known.name, pair, batch, num_particles, known)


def user_subject(
    model: Any,
    guide: Any,
    data: Any,
    *,
    settings: str | None,
    num_particles: int,
    rows: int,
) -> BenchmarkPair:
    """A user's pair, initialized from its data, on the first rows."""
    loaded = load_data(data)
    all_rows = loaded.batch(torch.arange(len(loaded)))
    batch = tuple(part[:rows] for part in all_rows)
    source = ModelFactory(model, parse_settings((settings or "").split()))
    program = source.make(all_rows)
    pair = ModelGuidePair(program, GuideFactory(guide).make(program, batch), Trace_ELBO())
    trace = pair.materialize_parameters(*batch)
    depths = [
        -frame.dim
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    name = getattr(program, "__name__", type(program).__name__)
    return BenchmarkPair(name, pair, batch, num_particles, nesting=max(depths, default=0))
