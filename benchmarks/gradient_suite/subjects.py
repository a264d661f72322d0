"""What the gradient benchmark looks at: a pair, its batch, every implementation, and the truth."""

from collections.abc import Iterator
from contextlib import contextmanager
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
from ppl_lvm.benchmarks.gradient_suite.programs import KnownProgram, handwritten_loss
from ppl_lvm.benchmarks.gradient_suite.targets import true_gradient
from ppl_lvm.core.call_syntax import parse_settings
from ppl_lvm.data import load_data
from ppl_lvm.programs.minibatch import ScaleDataPlate
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.sources import GuideFactory, ModelFactory

REFERENCE_NUMBERS = 100_000_000  # kept at most for each target: 400 MB
MANY_PARTICLES = 500  # of a consistent estimator, in place of infinitely many
SUBSAMPLED = 10  # a batch of B stands for 10 B rows where mini-batches are looked at


@dataclass
class BenchmarkPair:
    """A prepared pair. `known` is None for a user's, whose targets are estimated.

    Attributes:
        nesting: plates to the left of a site, at most: where Pyro puts its particles.
        references: draws (n, P) whose mean stands for the target, by name of the bound.
    """

    name: str
    pair: ModelGuidePair
    batch: tuple[Tensor, ...]
    num_particles: int
    known: KnownProgram | None = None
    nesting: int = 1
    references: dict[str, Tensor] = field(default_factory=dict)

    def implementations(self) -> Iterator[Implementation]:
        """All hands."""
        yield from ours(self.pair, self.num_particles)
        yield from pyros(self.pair, self.num_particles, self.nesting)
        if self.known is not None:
            yield from handwritten(self.known, self.pair, self.num_particles)

    def subsampled(self, rows: int) -> Iterator[Implementation]:
        """Ours and Pyro's, where a batch of so many rows stands for SUBSAMPLED times as many."""
        scale = ScaleDataPlate(SUBSAMPLED * rows)
        programs = SimpleNamespace(model=scale(self.pair.model), guide=scale(self.pair.guide))
        yield from ours(programs, self.num_particles)
        yield from pyros(programs, self.num_particles, self.nesting)

    def is_finite(self, implementation: Implementation) -> bool:
        """Whether its mean is a finite sum, taken row by row."""
        return self.known is not None and self.known.states is not None and implementation.forced

    def exact_mean(self, implementation: Implementation) -> tuple[Tensor, float] | None:
        """Mean gradient and bound by a finite sum, where there is one."""
        known = self.known
        if not self.is_finite(implementation) or known is None or known.states is None:
            return None
        x, params = self.batch[0], handwritten_loss(self.pair.unconstrained_parameters)
        states = known.states.to(x)
        log_q = known.handwritten_loss.log_q(params, x, states.expand(-1, len(x), -1)).detach()
        step = samples.steady(implementation.step, implementation.objective)
        return samples.enumerate_draws(
            step, x, self.pair.unconstrained_parameters, states, log_q, self.num_particles
        )

    def target(self, implementation: Implementation) -> tuple[Tensor, Tensor | None] | None:
        """What the gradient should be, (P,), and the draws that say so if it is not exact.

        None where nobody knows.
        """
        if self.known is None:
            drawn = self.references.get(_stands_for(implementation.target))
            return None if drawn is None else (drawn.mean(0), drawn)
        vector = true_gradient(
            self.known,
            self.pair.unconstrained_parameters,
            self.batch[0],
            implementation,
            self.num_particles,
        )
        return None if vector is None else (vector, None)

    def log_evidence(self) -> tuple[float, float]:
        """log p(x) summed over the batch and a bound on its error: exact, or of 2,000 particles."""
        if self.known is not None:
            params = handwritten_loss(self.pair.unconstrained_parameters)
            return self.known.handwritten_loss.log_evidence(params, self.batch[0]).sum().item(), 0.0
        objective = estimators.VIMCO(num_particles=2000)
        pair, batch = self.pair, self.batch
        draws = torch.tensor([-objective.loss(pair.model, pair.guide, *batch) for _ in range(8)])
        return draws.mean().item(), 3 * draws.std().item()

    def estimate_references(self, repeats: int) -> None:
        """For each target, many draws of the first of ours that is right for it.

        Right is what declares itself unbiased; and where only consistent ones are there (TVO, the
        guide's half of wake-sleep) the same with MANY_PARTICLES.
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
        if wake is not None:  # the model's half is that of IWAE with the particles that are asked
            of_model = ~self._of_guide()
            size = min(len(self.references[wake]), len(self.references["IWAE"]))
            mixed = self.references[wake][:size].clone()
            mixed[:, of_model] = self.references["IWAE"][:size, of_model]
            self.references[wake] = mixed
            self.references["wake"] = mixed  # Pyro's

    def _refer(self, implementation: Implementation, repeats: int) -> None:
        if _stands_for(implementation.target) != implementation.target:
            return
        try:
            draws, _ = samples.sample(
                implementation.step, self.batch, self.pair.unconstrained_parameters, repeats
            )
        except (ValueError, NotImplementedError):
            return  # it refuses this pair: another one will do
        self.references[implementation.target] = draws

    def _of_guide(self) -> Tensor:
        """Which entries of the gradient are parameters that log q depends on, (P,)."""
        pair = self.pair
        found = samples.groups(pair.model, pair.guide, self.batch, pair.unconstrained_parameters)
        mask = torch.zeros(
            sum(leaf.numel() for leaf in pair.unconstrained_parameters.values()), dtype=torch.bool
        )
        for name, where in found.items():
            if name.startswith("guide"):
                mask[where] = True
        return mask


def _stands_for(target: str) -> str:
    """A relaxed objective is judged as the stand-in for the discrete one that it is."""
    return "ELBO" if target == "relaxed ELBO" else target


@contextmanager
def double() -> Iterator[None]:
    """New tensors are float64 inside, so that an exact zero is told from rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


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
    """A user's pair, started from its data, on its first rows."""
    loaded = load_data(data)
    everything = loaded.batch(torch.arange(len(loaded)))
    batch = tuple(part[:rows] for part in everything)
    source = ModelFactory(model, parse_settings((settings or "").split()))
    program = source.make(everything)
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
