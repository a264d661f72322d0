"""Jumps of log-densities in reparameterized draws.

A pathwise gradient misses what a jump of log p or log q contributes: for f(z) = 1[z > 0] it is
zero, whatever the guide. A comparison, a rounding or an index makes a jump, or does not: relu(z),
z[z.argsort()] and splines are continuous. Two steps decide:

1. Dependence: operations of the programs that cut the derivative in a draw, and on whose results
   a log-density depends, whatever the values (a weight of zero counts).
2. Both sides of a boundary: between two draws where the result of such an operation differs,
   bisection finds the place of the change. Log-densities that differ there jump. Parameters that
   are zero have other values during this test.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from pyro import validation_enabled
from torch import Tensor

from ppl_lvm.core.autograd import leaves
from ppl_lvm.core.distributions import is_point
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.estimators.parts.smoothness import Cut, CutDerivatives
from ppl_lvm.particles.log_prob_tables import PairRun
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import PROGRAM_ERRORS, is_scored, tempered_log_prob
from ppl_lvm.programs.dependencies import FollowNames

_LINES = 4  # straight lines between two draws
_PLACES = (-3.0, -1.0, 0.0, 1.0, 2.0, 4.0)  # on a line through draws at 0 and 1
_BISECTIONS = 18
_BOUNDARIES = 2  # tested for each operation: a spline has thousands, each of many runs


@dataclass(frozen=True)
class Jump:
    """An operation whose result makes a log-density jump: the site that it reads, and its line."""

    site: str
    operation: str
    file: str
    line: int

    REMEDY: ClassVar[str] = (
        "Write a smooth function, such as torch.sigmoid(z / 0.1), or draw the site without a "
        "pathwise gradient, ppl_lvm.authoring.without_rsample(dist.Normal(loc, scale)), and use "
        "LeaveOneOut."
    )

    def message(self, name: str) -> str:
        """Warning of the estimator `name`."""
        return (
            f"{name} differentiates through draws of '{self.site}', but a log-density jumps in "
            f"them at {self.file}:{self.line} ({self.operation}), which this gradient misses. "
            + self.REMEDY
        )


def find_jump(run: PairRun, structure: PairStructure) -> Jump | None:
    """The first jump of a log-density in reparameterized draws, or None."""
    programs = _Programs(run, structure)
    with preserve_rng(), validation_enabled(False):
        try:
            first = programs.draw()
            candidates = programs.candidates(first) if first else {}
            if not candidates:
                return None
            draws = [first, *(programs.draw() for _ in range(_LINES))]
            with programs.parameters_not_zero(first):
                for a, b in pairwise(draws):
                    if all(programs.tested[place] >= _BOUNDARIES for place in candidates):
                        break
                    for jump in programs.jumps(a, b, candidates):
                        return jump
        except PROGRAM_ERRORS:  # outside the draws' region, or of an operation that is not followed
            pass
    return None


class _Programs:
    def __init__(self, run: PairRun, structure: PairStructure) -> None:
        self._run = run
        self._fixed: dict[str, Any] = {}
        self._supports: dict[str, Any] = {}
        self.tested: Counter[tuple[str, str, int]] = Counter()
        self._omitted = {*structure.score_sites, *structure.constant}

    def draw(self) -> dict[str, Tensor]:
        """Values of the guide's draws that have a gradient; the others are those of the first."""
        with torch.enable_grad():
            sites, _ = self._run(None)
        random = {n: s for n, s in sites.items() if not (is_scored(s) and is_point(s["fn"]))}
        free = {
            name: site["value"].detach()
            for name, site in random.items()
            if is_scored(site)
            and name not in self._omitted
            and isinstance(site["value"], Tensor)
            and site["value"].requires_grad
        }
        if not self._fixed:
            self._supports = {name: sites[name]["fn"].support for name in free}
            self._fixed = {n: s["value"] for n, s in random.items() if n not in free}
        return free

    def run(
        self, values: Mapping[str, Tensor], names: FollowNames | None = None, **how: Any
    ) -> tuple[list[Cut], list[Tensor]]:
        """Operations that cut derivatives in the values, and all log-densities."""
        draws = {n: v.detach().clone().requires_grad_() for n, v in values.items()}
        if names is not None:
            for name, draw in draws.items():
                names.set(draw, frozenset({name}))
        torch.manual_seed(0)  # dropout
        with torch.enable_grad(), CutDerivatives(draws, **how) as mode:
            sites = self._run(None, values={**self._fixed, **draws})
            scored = [site for each in sites for site in each.values() if is_scored(site)]
            return mode.operations, [tempered_log_prob(site) for site in scored]

    def candidates(self, values: Mapping[str, Tensor]) -> dict[tuple[str, str, int], str]:
        """Operation -> site, of those on which a log-density depends."""
        if not any(cut.output is not None for cut in self.run(values)[0]):
            return {}
        read: dict[tuple[str, str, int], str] = {}
        with FollowNames() as names:

            def label(cut: Cut, inputs: list[Tensor], result: Any) -> None:
                if cut.output is None:
                    return
                site = next(iter(sorted(names.of(inputs) & values.keys())), next(iter(values)))
                read.setdefault(cut.place, site)
                if isinstance(result, Tensor):
                    names.set(result, names.of(result) | {str(cut.place)})
                else:
                    names.is_unknown = True

            reached = names.of(self.run(values, names, observe=label)[1])
        return {p: s for p, s in read.items() if names.is_unknown or str(p) in reached}

    @contextmanager
    def parameters_not_zero(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """A scope in which entries of parameters that are zero are random."""
        _, densities = self.run(values)
        parameters = list({id(v): v for d in densities for v in leaves(d)}.values())
        before = [value.detach().clone() for value in parameters]
        try:
            with torch.no_grad():
                for value in parameters:
                    value.copy_(torch.where(value == 0, 0.3 * torch.randn_like(value), value))
            yield
        finally:
            with torch.no_grad():
                for value, old in zip(parameters, before, strict=True):
                    value.copy_(old)

    def jumps(
        self,
        start: Mapping[str, Tensor],
        end: Mapping[str, Tensor],
        candidates: Mapping[tuple[str, str, int], str],
    ) -> Iterator[Jump]:
        """Jumps on the line through two draws, inside the supports."""

        def at(t: float) -> dict[str, Tensor]:
            return {n: start[n] + t * (end[n] - start[n]) for n in start}

        def inside(t: float) -> bool:
            return all(bool(self._supports[n].check(v).all()) for n, v in at(t).items())

        places = [t for t in _PLACES if t in (0.0, 1.0) or inside(t)]
        runs = [self.run(at(t))[0] for t in places]
        for k, cut in enumerate(runs[0]):
            site = candidates.get(cut.place)
            if site is None or cut.output is None:
                continue
            for a, b, left, right in zip(places, places[1:], runs, runs[1:], strict=False):
                if self.tested[cut.place] >= _BOUNDARIES:
                    break
                if _differ(left, right, k) and self._jumps_between(at, a, b, left, k):
                    yield Jump(site, *cut.place)
                    break

    def _jumps_between(self, at: Any, a: float, b: float, left: list[Cut], k: int) -> bool:
        for _ in range(_BISECTIONS):
            middle = (a + b) / 2
            if _differ(left, self.run(at(middle))[0], k):
                b = middle
            else:
                a = middle
        h = b - a
        runs = [self.run(at(t)) for t in (a - h, a, b, b + h)]
        near, far = runs[1][0], runs[2][0]
        same_operations = [cut.place for cut in near] == [cut.place for cut in far]
        places = {c.place for j, c in enumerate(near) if same_operations and _differ(near, far, j)}
        self.tested.update({*places, left[k].place})
        return any(_jump(*parts) for parts in zip(*(each[1] for each in runs), strict=True))


def _differ(a: list[Cut], b: list[Cut], k: int) -> bool:
    """True if the k-th cut of two runs is of the same operation with another result."""
    if len(b) <= k or a[k].place != b[k].place:
        return len(a) != len(b) or any(x.place != y.place for x, y in zip(a, b, strict=True))
    x, y = a[k].output, b[k].output
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.shape != y.shape or not torch.equal(x, y)
    return bool(x != y)


def _jump(outer: Tensor, near: Tensor, far: Tensor, beyond: Tensor) -> bool:
    """True if an element changes by more than rounding and than on either side."""
    if not outer.shape == near.shape == far.shape == beyond.shape:
        return False
    change = (far - near).abs().nan_to_num(0.0, 0.0, 0.0)
    smooth = (near - outer).abs() + (beyond - far).abs()
    rounding = (1e-9 if near.dtype is torch.float64 else 1e-4) * (1 + near.abs())
    return bool((near.isfinite() & far.isfinite() & (change > rounding + 20 * smooth)).any())
