"""Log density of global latents in unconstrained coordinates.

With T the bijection of each site from the real line onto its support and u the sites' unconstrained
values in one vector,

    ℓ(u) = log p(x, T(u)) + log |det T'(u)|,    p(u | x) ∝ exp ℓ(u).

Marked discrete sites are summed out of p. Nothing is drawn from a prior, so that an improper prior
is a density like any other. The program's operations and their gradient are recorded once, and many
vectors are evaluated by one call (`torch.func.vmap`). A program that cannot be recorded or batched
runs anew for every vector.
"""

import math
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import validation_enabled
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_lvm.core.types import Batch, Program, Tensors
from ppl_lvm.particles.log_prob_tables import tabulate
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import Sites, is_scored, plate_frames, trace_program

LinAlgError: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]

CHUNK = 32  # vectors of one recorded call
ELSEWHERE = 0.05  # distance of the vectors at which a recording is tested
LONG = 10_000  # operations, of which a second recording costs more than it saves


@dataclass
class _Coordinates:
    """The part of the vector that belongs to a site: its unconstrained shape, and its offset."""

    shape: torch.Size
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.shape.numel()


class _Unconstrained(Messenger):
    """Values of the continuous latents from a vector; zeros where their shape is not yet known."""

    def __init__(self, vector: Tensor | None, coordinates: dict[str, _Coordinates]) -> None:
        super().__init__()
        self._vector, self._coordinates = vector, coordinates
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
            u = torch.zeros(shape)
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
        sites = self._run(None)[0]
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
        self._calls: dict[int, Callable[[Tensor], tuple[Tensor, Tensor]]] = {}

    @property
    def parts(self) -> dict[str, slice]:
        """Site -> its coordinates in the vector."""
        return {name: slice(c.start, c.stop) for name, c in self._coordinates.items()}

    def _run(self, vector: Tensor | None) -> tuple[Sites, Any]:
        values = _Unconstrained(vector, self._coordinates)
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
        sites, log_det = self._run(u)
        with _without_validation():
            tables = tabulate({}, sites, self._structure, vectorized=False)
        parts = [*tables.log_p.values(), *([] if tables.marginal is None else [tables.marginal])]
        total: Tensor = sum((part.sum() for part in parts), start=torch.zeros(())) + log_det
        return total

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """ℓ (B,) and ∇ℓ (B, D) of vectors (B, D)."""
        self.evaluations += len(u)
        size = 1 if len(u) == 1 else CHUNK
        if size not in self._calls:
            self._calls[size] = self._record(u[torch.arange(size) % len(u)])
        call = self._calls[size]
        values, gradients = [], []
        for chunk in u.split(size):
            padded = (
                chunk
                if len(chunk) == size
                else torch.cat([chunk, chunk[-1:].expand(size - len(chunk), -1)])
            )
            value, gradient = self._evaluate(call, padded)
            values.append(value[: len(chunk)])
            gradients.append(gradient[: len(chunk)])
        return torch.cat(values), torch.cat(gradients)

    def _evaluate(
        self, call: Callable[[Tensor], tuple[Tensor, Tensor]], u: Tensor
    ) -> tuple[Tensor, Tensor]:
        try:
            return call(u)
        except LinAlgError:  # one vector without a factorization stops a batch
            parts = [self._evaluate_alone(vector) for vector in u]
            values, gradients = zip(*parts, strict=True)
            return torch.stack(values), torch.stack(gradients)

    def _evaluate_alone(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """ℓ and ∇ℓ of one vector (D,): −∞ and zeros where a factorization does not exist."""
        try:
            values, gradients = self._one_by_one(vector.unsqueeze(0))
        except LinAlgError:
            return vector.new_tensor(-math.inf), torch.zeros_like(vector)
        return values[0], gradients[0]

    def check(self) -> None:
        """Run the program at zero, so that its errors come before any work."""
        self.log_density(torch.zeros(self.dim, dtype=self.dtype))

    def _record(self, example: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """A function of as many vectors as the example has."""

        def single(vector: Tensor) -> tuple[Tensor, Tensor]:
            leaf = vector.detach().requires_grad_()
            with torch.enable_grad():
                value = self.log_density(leaf)
                (gradient,) = torch.autograd.grad(value, leaf)
            return value.detach(), gradient

        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                recorded = make_fx(single)(example[0])
                graph: Any = torch.func.vmap(recorded)
                if len(example) > 1 and len(recorded.graph.nodes) < LONG:
                    graph = make_fx(graph)(example)  # without the rules of vmap at each call
                other = example + ELSEWHERE  # a branch taken by values would differ
                values, gradients = zip(*map(self._evaluate_alone, other), strict=True)
                if _agree(graph(other), (torch.stack(values), torch.stack(gradients))):
                    return _without_grad(graph)
        except Exception:  # operations that cannot be recorded or batched
            pass
        return self._one_by_one

    def _one_by_one(self, u: Tensor) -> tuple[Tensor, Tensor]:
        values, gradients = [], []
        for vector in u:
            leaf = vector.detach().requires_grad_()
            with torch.enable_grad():
                value = self.log_density(leaf)
                (gradient,) = torch.autograd.grad(value, leaf)
            values.append(value.detach())
            gradients.append(gradient)
        return torch.stack(values), torch.stack(gradients)

    def trace(self, u: Tensor) -> Sites:
        """The sites of a run at a vector (D,)."""
        return self._run(u)[0]

    def constrain(self, u: Tensor) -> Tensors:
        """Sites' values (B, *shape) at vectors (B, D), `pyro.deterministic` sites included."""
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
                batched: Tensors = torch.func.vmap(values)(u)
                return batched
        except Exception:  # operations that cannot be batched
            rows = [values(vector) for vector in u]
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _is_reported(name: str, site: Any, latents: dict[str, torch.Size]) -> bool:
    return name in latents or bool(site["infer"].get("_deterministic"))


def _without_grad(graph: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def call(u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            value, gradient = graph(u)
        return value, gradient

    return call


def _agree(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
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
