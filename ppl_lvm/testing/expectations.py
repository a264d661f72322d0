"""Exact expectations of estimators by enumeration and quadrature.

Given values replace a guide's discrete draws, given noise its Gaussian draws, and given rows the
subsample of a plate. An expectation is then a finite sum over cases:

    E[gradient] = Σ_case P(case) · gradient(case)      of the estimator, from its loss
    ∇E[loss]    = ∇ Σ_case P(case; φ) · loss(case)     of the target; P is differentiated too
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from math import prod
from typing import Any
from unittest import mock

import numpy as np
import torch
from pyro.distributions import Normal
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import innermost, unmasked
from ppl_lvm.estimators.base import Estimator, total
from ppl_lvm.particles import Particles
from ppl_lvm.particles.structure import Program
from ppl_lvm.programs.precision import default_dtype

Case = dict[str, Tensor]  # by site: (K, ...) values, (K, ...) noise, or (B,) rows


# Makes float64 the default dtype inside.
double_precision = partial(default_dtype, torch.float64)


class ForceDraws(Messenger):
    """Replace draws by those of a case and sum the case's log-probability."""

    def __init__(self, case: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.case = case
        self.log_prob = torch.zeros(())
        self._next_particle: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or msg["name"] not in self.case:
            return
        value = self.case[msg["name"]]
        if not site_is_subsample(msg):
            value = self._reshape(msg["name"], value, msg["fn"].shape())
            base = innermost(msg["fn"])
            if isinstance(base, Normal):
                value = base.loc + base.scale * value
            else:
                self.log_prob = self.log_prob + unmasked(msg["fn"]).log_prob(value).sum()
        msg["value"] = value
        msg["done"] = True

    def _reshape(self, name: str, value: Tensor, shape: torch.Size) -> Tensor:
        if value.numel() == prod(shape):
            return value.reshape(shape)
        k = self._next_particle.get(name, 0)  # in a loop over particles
        self._next_particle[name] = k + 1
        return value[k].reshape(shape)


def enumerate_cases(num_particles: int, **sites: tuple[int, tuple[int, ...]]) -> Iterator[Case]:
    """All values of all K particles. A site is (size of its support, shape of one draw)."""
    shapes = {name: (num_particles, *shape) for name, (_, shape) in sites.items()}
    supports = [range(size) for n, (size, _) in sites.items() for _ in range(prod(shapes[n]))]
    for flat in product(*supports):
        values = torch.tensor(flat, dtype=torch.get_default_dtype())
        parts = values.split([prod(shape) for shape in shapes.values()])
        yield {n: v.reshape(shapes[n]) for n, v in zip(shapes, parts, strict=True)}


def with_subsamples(
    cases: Iterable[Case], plate: str, size: int, subsample_size: int
) -> Iterator[Case]:
    """Combine every case with every subsample of a plate."""
    subsamples = [torch.tensor(c) for c in combinations(range(size), subsample_size)]
    for case in cases:
        for rows in subsamples:
            yield {**case, plate: rows}


@dataclass(frozen=True)
class Expectation:
    """Exact expectations of an estimator on one program.

    Attributes:
        gradient: E[gradient of the loss], all parameters in one vector.
        target: gradient of E[-objective], the same vector.
        bound: E[bound], summed over rows and scaled.
        log_w: log-weights (K, B) of every case.
        mass: probability of every case.
        scale, offset: N/B and the constant part of the bound.
    """

    gradient: Tensor
    target: Tensor
    bound: float
    log_w: list[Tensor]
    mass: list[float]
    scale: float
    offset: float

    def mean(self, per_row: Sequence[Tensor]) -> float:
        """E of a quantity per row, one (B,) per case, summed over rows and scaled."""
        weighted = sum(m * float(v.sum()) for m, v in zip(self.mass, per_row, strict=True))
        return weighted / sum(self.mass) * self.scale + self.offset


def enumerate_expectation(
    estimator: Estimator,
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    parameters: Sequence[Tensor],
    cases: Iterable[Case],
) -> Expectation:
    """Expectations by the sum over all cases.

    Subsamples of rows are equally likely: sums are divided by the total mass.

    Raises:
        AssertionError: the loss is not the scaled sum of the bound.
    """
    _freeze_state(estimator)
    estimator.analyze(model, guide, args, {})  # before draws are forced
    gradient = torch.zeros(sum(p.numel() for p in parameters))
    target = torch.zeros(())
    bound, log_w, mass = 0.0, [], []
    for case in cases:
        with ForceDraws(case) as forced:
            particles = estimator.draw(model, guide, args, {})
            with mock.patch.object(estimator, "draw", lambda *_, p=particles: p):  # drawn once
                loss = estimator.differentiable_loss(model, guide, *args)
        probability = forced.log_prob.exp()
        gradient += probability.detach() * flat_gradient(loss, parameters)
        value = total(estimator.bound(particles), particles)
        sign = 1.0 if estimator.is_upper_bound else -1.0
        assert torch.allclose(sign * value, loss, rtol=1e-9), (
            f"{type(estimator).__name__}: loss {float(loss.detach()):.6g} is not the sum of the "
            f"bound, {float((sign * value).detach()):.6g}"
        )
        target = target - probability * total(estimator.objective(particles), particles)
        mass.append(float(probability.detach()))
        log_w.append(particles.log_w.detach())
        bound += mass[-1] * float(value.detach())
    Z = sum(mass)
    return Expectation(
        gradient / Z,
        flat_gradient(target, parameters) / Z,
        bound / Z,
        log_w,
        mass,
        float(particles.scale),
        float(torch.as_tensor(particles.offset).detach()),
    )


def quadrature_expectation(
    estimator: Estimator,
    model: Program,
    guide: Program,
    x: float,
    parameters: Sequence[Tensor],
    sites: Sequence[str] = ("z",),
    nodes: int = 90,
) -> Expectation:
    """Expectations on one row x by Gauss-Hermite quadrature over the noise of Gaussian sites.

    The nodes are the rows of one batch.
    """
    _freeze_state(estimator)
    K = estimator.num_particles
    points, weight = np.polynomial.hermite_e.hermegauss(nodes)
    weight = weight / weight.sum()
    dims = K * len(sites)
    grid = torch.cartesian_prod(*[torch.tensor(points)] * dims).reshape(-1, dims)  # (rows, dims)
    mass = (
        torch.cartesian_prod(*[torch.tensor(weight)] * dims).reshape(-1, dims).prod(-1)
    )  # (rows,)
    case = dict(zip(sites, grid.T.reshape(len(sites), K, -1), strict=True))
    args = (torch.full((len(mass),), x),)
    estimator.analyze(model, guide, (args[0][:3],), {})  # few rows have the same structure
    with ForceDraws(case):
        particles: Particles = estimator.draw(model, guide, args, {})
        surrogate = (mass * estimator.surrogate(particles)).sum()
        objective = (mass * estimator.objective(particles)).sum()
        bound = float((mass * estimator.bound(particles)).sum().detach())
    return Expectation(
        flat_gradient(-surrogate, parameters),
        flat_gradient(-objective, parameters),
        bound,
        [w.unsqueeze(-1) for w in particles.log_w.detach().unbind(-1)],
        mass.tolist(),
        1.0,
        0.0,
    )


def _freeze_state(estimator: Estimator) -> None:
    """Fix the learned state at values other than zero for all cases."""
    estimator.eval()
    for buffer in estimator.buffers():
        buffer.fill_(0.7)


def flat_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Gradients of all parameters in one vector, zeros where the loss does not depend on one."""
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            torch.zeros(p.numel()) if g is None else g.reshape(-1)
            for g, p in zip(grads, parameters, strict=True)
        ]
    )
