"""Log density of global latents in unconstrained coordinates.

With T the bijection of each site from the real line onto its support and u the sites' unconstrained
values in one vector,

    ℓ(u) = log p(x, T(u)) + log |det T'(u)|,    p(u | x) ∝ exp ℓ(u).

Marked discrete sites are summed out of p. Nothing is drawn from a prior, so that an improper prior
is a density like any other. The program is recorded once, and many vectors are evaluated by one
call. A program that cannot be recorded or batched runs anew for every vector.
"""

import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import validation_enabled
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from ppl_lvm.approximation.recording import RecordedDensity
from ppl_lvm.core.types import Batch, Program, Tensors
from ppl_lvm.particles.log_prob_tables import tabulate
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import Sites, is_scored, plate_frames, trace_program

LinAlgError: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]

CHUNK = 64  # vectors of one recorded call
MANY = 512  # vectors of a call for values of sites
FEW = 4  # vectors of a call while paths are followed
STARTS = (0.0, 1.0, -1.0)  # coordinates of a program's first run
ELSEWHERE = 0.05  # distance of the vectors at which a record is tested


@dataclass
class _Coordinates:
    """The part of the vector that belongs to a site: its unconstrained shape, and its offset."""

    shape: torch.Size
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.shape.numel()


class _Unconstrained(Messenger):
    """Values of the continuous latents from a vector; `start` where their shape is not known."""

    def __init__(
        self, vector: Tensor | None, coordinates: dict[str, _Coordinates], start: float = 0.0
    ) -> None:
        super().__init__()
        self._vector, self._coordinates, self._start = vector, coordinates, start
        self.log_det: Any = 0.0

    def _pyro_sample(self, msg: Any) -> None:
        fn, name = msg["fn"], msg["name"]
        if msg["is_observed"] or msg["value"] is not None or msg["done"]:
            return
        if msg["infer"].get("enumerate") is not None and fn.has_enumerate_support:
            return
        if not is_scored(msg):
            return
        transform = biject_to(fn.support)
        if self._vector is None:
            shape = torch.Size(transform.inverse_shape(fn.shape()))
            start = max((c.stop for c in self._coordinates.values()), default=0)
            self._coordinates[name] = _Coordinates(shape, start)
            u = torch.full(shape, self._start)
        else:
            part = self._coordinates[name]
            u = self._vector[part.start : part.stop].reshape(part.shape)
        msg["value"] = value = transform(u)
        msg["done"] = True
        if self._vector is not None:
            self.log_det = self.log_det + transform.log_abs_det_jacobian(u, value).sum()


@contextmanager
def _without_validation() -> Iterator[None]:
    # Checks of values read tensors, which neither a recording nor a batch of vectors has.
    with validation_enabled(False), poutine.block():
        yield


@dataclass
class LogDensity:
    """ℓ(u) and its gradient.

    Args:
        model: the program, whose latents outside of enumeration are all global and continuous.
        batch: its arguments.

    Attributes:
        sites: site -> shape of its value.
        dim: D, the number of unconstrained values.
        evaluations: gradients computed so far.
    """

    model: Program
    batch: Batch
    dim: int = field(init=False)
    sites: dict[str, torch.Size] = field(init=False)
    evaluations: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._coordinates: dict[str, _Coordinates] = {}
        sites = self._first_run()
        latents = {n: sites[n]["value"] for n in self._coordinates}
        self.sites = {name: value.shape for name, value in latents.items()}
        self.dtype = torch.get_default_dtype()
        self.dim = max((c.stop for c in self._coordinates.values()), default=0)
        dims = [frame.dim for site in sites.values() for frame in plate_frames(site)]
        enumerated = frozenset(
            name
            for name, site in sites.items()
            if not site["is_observed"]
            and site["infer"].get("enumerate") is not None
            and name not in self._coordinates
        )
        self._structure = PairStructure(
            -min(dims, default=0), None, frozenset(), None, enumerated, frozenset(), {}, ()
        )
        self._recording: RecordedDensity | None = None
        self._reported: list[str] = []
        self._recordable = True

    @property
    def parts(self) -> dict[str, slice]:
        """Site -> its coordinates in the vector."""
        return {name: slice(c.start, c.stop) for name, c in self._coordinates.items()}

    def _first_run(self) -> Sites:
        """The sites of a run, which also finds the shapes of the latents."""
        for start in STARTS[:-1]:
            with suppress(LinAlgError):  # a factorization that exists elsewhere only
                return self._run(None, start)[0]
            self._coordinates.clear()
        return self._run(None, STARTS[-1])[0]

    def _run(self, vector: Tensor | None, start: float = 0.0) -> tuple[Sites, Any]:
        values = _Unconstrained(vector, self._coordinates, start)
        structure = getattr(self, "_structure", None)
        with _without_validation():
            sites = trace_program(
                self.model,
                self.batch,
                {},
                particles=None,
                nesting=0 if structure is None else structure.nesting,
                drawing=values,
                enumerated=frozenset() if structure is None else structure.enumerated,
            )
        return sites, values.log_det

    def log_density(self, u: Tensor) -> Tensor:
        """ℓ of one vector (D,), by a run of the program; differentiable."""
        return self._total(*self._run(u))

    def _total(self, sites: Sites, log_det: Any) -> Tensor:
        with _without_validation():
            tables = tabulate({}, sites, self._structure, vectorized=False)
        parts = [*tables.log_p.values(), *([] if tables.marginal is None else [tables.marginal])]
        total: Tensor = sum((part.sum() for part in parts), start=torch.zeros(())) + log_det
        return total

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """ℓ (B,) and ∇ℓ (B, D) of vectors (B, D)."""
        self.evaluations += len(u)
        if self._recordable and self._recording is None:
            self._record(u)
        parts = [self._evaluate(chunk) for chunk in u.split(CHUNK)]
        return torch.cat([v for v, _ in parts]), torch.cat([g for _, g in parts])

    def _evaluate(self, u: Tensor) -> tuple[Tensor, Tensor]:
        if self._recording is None:
            return self._one_by_one(u)
        if self._recording.long:  # a call of any size
            return self._recording.density(u)
        missing = (FEW if len(u) <= FEW else CHUNK) - len(u)
        padded = torch.cat([u, u[-1:].expand(missing, -1)]) if missing else u
        value, gradient = self._recording.density(padded)
        return value[: len(u)], gradient[: len(u)]

    def check(self) -> None:
        """Run the program at zero, so that its errors come before any work."""
        with suppress(LinAlgError):
            self.log_density(torch.zeros(self.dim, dtype=self.dtype))

    def _record(self, u: Tensor) -> None:
        """Record the program, and compare the record with runs at other vectors."""
        other = u[torch.arange(FEW) % len(u)] + ELSEWHERE  # a branch by values would differ
        try:
            recording = RecordedDensity(self._outputs, u[0])
            self._recordable = _agree(recording.density(other), self._one_by_one(other))
            self._recording = recording if self._recordable else None
        except Exception:  # operations that cannot be recorded or batched
            self._recordable = False

    def _outputs(self, leaf: Tensor) -> list[Tensor]:
        """ℓ and the reported values at one vector (D,), by a run of the program."""
        sites, log_det = self._run(leaf)
        self._reported = [n for n, s in sites.items() if _is_reported(n, s, self.sites)]
        return [self._total(sites, log_det), *(sites[n]["value"] for n in self._reported)]

    def _one_by_one(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """ℓ and ∇ℓ by runs: −∞ and zeros where a factorization does not exist."""
        values, gradients = zip(*map(self._value_and_gradient, u), strict=True)
        return torch.stack(values), torch.stack(gradients)

    def _value_and_gradient(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        leaf = vector.detach().requires_grad_()
        try:
            with torch.enable_grad():
                value = self.log_density(leaf)
                if not value.requires_grad:  # a flat density
                    return value, torch.zeros_like(vector)
                (gradient,) = torch.autograd.grad(value, leaf)
        except LinAlgError:
            return vector.new_tensor(-math.inf), torch.zeros_like(vector)
        return value.detach(), gradient

    def trace(self, u: Tensor) -> Sites:
        """The sites of a run at a vector (D,)."""
        return self._run(u)[0]

    @torch.no_grad()
    def constrain(self, u: Tensor) -> Tensors:
        """Sites' values (B, *shape) at vectors (B, D), `pyro.deterministic` sites included."""
        if self._recording is not None:
            parts = zip(*map(self._recording.values, u.split(MANY)), strict=True)
            return dict(zip(self._reported, map(torch.cat, parts), strict=True))
        sites = self.trace(u[0].detach())
        return self.values(u, [n for n, s in sites.items() if _is_reported(n, s, self.sites)])

    @torch.no_grad()
    def values(self, u: Tensor, names: Collection[str]) -> Tensors:
        """Values (B, *shape) of these sites at vectors (B, D)."""

        def values(vector: Tensor) -> Tensors:
            sites = self.trace(vector)
            return {name: sites[name]["value"] for name in names}

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parts = [torch.func.vmap(values)(chunk) for chunk in u.split(MANY)]
                return {name: torch.cat([part[name] for part in parts]) for name in names}
        except Exception:  # operations that cannot be batched
            rows = [values(vector) for vector in u]
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _is_reported(name: str, site: Any, latents: dict[str, torch.Size]) -> bool:
    return name in latents or bool(site["infer"].get("_deterministic"))


def _agree(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(
        torch.allclose(a, e, rtol=1e-6, atol=1e-8, equal_nan=True)
        for a, e in zip(actual, expected, strict=True)
    )


def starting_points(target: LogDensity, count: int, generator: torch.Generator) -> Tensor:
    """Vectors (count, D), uniform in (−2, 2) as Stan's, where ℓ and its gradient are finite.

    Raises:
        ValueError: none of 100 draws has a finite density.
    """
    points: list[Tensor] = []
    for _ in range(100):
        u = torch.rand(count, target.dim, generator=generator, dtype=target.dtype) * 4 - 2
        value, gradient = target(u)
        finite = value.isfinite() & gradient.isfinite().all(1)
        points += list(u[finite])
        if len(points) >= count:
            return torch.stack(points[:count])
    if points:
        return torch.stack(points)
    raise ValueError(
        f"Model: log p(x, z) or its gradient is not finite at any of {100 * count} random points, "
        f"uniform in (-2, 2) in the unconstrained coordinates of {', '.join(target.sites)}. Check "
        "the supports of the observed sites, and expressions such as log, sqrt and division."
    )


def log_two_pi(dim: int) -> float:
    """D/2 log 2π."""
    return 0.5 * dim * math.log(2 * math.pi)
