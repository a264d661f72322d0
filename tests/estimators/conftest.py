"""Exact expectations of estimators, run through real Pyro programs: no seeds, no tolerances.

Chosen values take the place of a guide's discrete draws, a fixed noise that of its Gaussian ones,
and chosen rows that of a plate's sub-sample. An expectation is then a finite sum over cases:

    E[gradient] = Σ_case P(case) · gradient(case)      the estimator's, by its own loss
    ∇E[loss]    = ∇ Σ_case P(case; φ) · loss(case)     the target's, P differentiated too
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations, product
from math import prod
from typing import Any

import pytest
import torch
from pyro.distributions import Normal
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import innermost
from ppl_lvm.estimators.base import Estimator, total

Case = dict[str, Tensor]  # by site: (K, ...) values, (K, ...) noise, or (B,) rows


class Forced(Messenger):
    """Put a case in the place of draws and record its log-probability."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.log_prob = torch.zeros(())
        self.used: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or msg["name"] not in self.case:
            return
        value = self.case[msg["name"]]
        if not site_is_subsample(msg):
            value = self._of_particle(msg["name"], value, msg["fn"].shape())
            fn = innermost(msg["fn"])
            if isinstance(fn, Normal):
                value = fn.loc + fn.scale * value
            else:
                self.log_prob = self.log_prob + msg["fn"].log_prob(value).sum()
        msg["value"] = value
        msg["done"] = True

    def _of_particle(self, name: str, value: Tensor, shape: torch.Size) -> Tensor:
        if value.numel() == prod(shape):
            return value.reshape(shape)
        k = self.used.get(name, 0)  # a loop over particles: the next one
        self.used[name] = k + 1
        return value[k].reshape(shape)


class Exact:
    """Sums over all cases."""

    def gradients(
        self,
        estimator: Estimator,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        parameters: Sequence[Tensor],
        cases: Iterable[Case],
    ) -> tuple[Tensor, Tensor]:
        """(E[estimator's gradient], gradient of E[its loss]), parameters flattened into one.

        Cases that differ in rows only are equally likely: the sums are divided by the total mass.
        """
        estimator.eval()  # averages stay as they are from case to case, and not at zero
        for buffer in estimator.buffers():
            buffer.fill_(0.7)
        estimator.analyze(model, guide, args, {})  # looks at the pair with draws of its own
        estimate = torch.zeros(sum(p.numel() for p in parameters))
        target = torch.zeros(())
        mass = 0.0
        for case in cases:
            with Forced(case) as forced:
                loss = estimator.differentiable_loss(model, guide, *args)
            probability = forced.log_prob.exp()
            estimate += probability.detach() * _flat_gradient(loss, parameters)
            with Forced(case):
                particles = estimator.draw(model, guide, args, {})
            value = total(estimator.bound(particles), particles)
            assert torch.allclose(value if estimator.is_upper_bound else -value, loss, rtol=1e-9)
            target = target - probability * total(estimator.objective(particles), particles)
            mass += float(probability.detach())
        return estimate / mass, _flat_gradient(target, parameters) / mass

    def cases(self, num_particles: int, **sites: tuple[int, tuple[int, ...]]) -> Iterator[Case]:
        """All values of all K particles; a site is given as (size of support, shape of a draw)."""
        shapes = {name: (num_particles, *shape) for name, (_, shape) in sites.items()}
        supports = [range(size) for n, (size, _) in sites.items() for _ in range(prod(shapes[n]))]
        for flat in product(*supports):
            values = torch.tensor(flat, dtype=torch.get_default_dtype())
            parts = values.split([prod(shape) for shape in shapes.values()])
            yield {n: v.reshape(shapes[n]) for n, v in zip(shapes, parts, strict=True)}

    def with_rows(
        self, cases: Iterable[Case], plate: str, size: int, subsample_size: int
    ) -> Iterator[Case]:
        """Every case with every sub-sample of a plate."""
        rows = [torch.tensor(c) for c in combinations(range(size), subsample_size)]
        for case in cases:
            for row in rows:
                yield {**case, plate: row}


def _flat_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            torch.zeros(p.numel()) if g is None else g.reshape(-1)
            for g, p in zip(grads, parameters, strict=True)
        ]
    )


@pytest.fixture
def exact() -> Exact:
    """In double precision, so that "equal" can mean 1e-9."""
    torch.set_default_dtype(torch.float64)
    return Exact()


@pytest.fixture
def forced() -> type[Forced]:
    """The handler that puts a case in the place of draws."""
    return Forced
