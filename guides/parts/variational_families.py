"""The factors of q: how numbers λ_n of a datum become a distribution of a site.

    q(z_ns) = T(N(μ, Σ)),   μ and Σ read from λ_ns,   T the bijection onto the site's support

where λ_ns comes from an encoder, from a table, or from a refinement of either: a factor does not
ask. A family says how many numbers it reads for an unconstrained event of a given shape:

    Diagonal    μ, then log σ: 2 k
    Full        μ, then S - I row by row, Σ = S Sᵀ + ε I: k + k²
    LowRank     μ, log σ, then D - D₀ (k, r) row by row, Σ = D Dᵀ + diag σ²: 2 k + k r

Written so, all of them start near a standard normal where λ starts near zero. D starts at D₀, r
orthogonal waves D₀_ij = cos(π (i + ½) (j + 1) / k): D = 0 is a stationary point, and a D that
changes its sign from datum to datum passes through it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import (
    Bernoulli,
    Categorical,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
)
from torch import Tensor

from ppl_lvm.guides.parts.support_transform import TransformedNormal
from ppl_lvm.programs.minibatch import DATA_PLATE
from ppl_lvm.programs.signatures import Signature, Site

LEAST_VARIANCE = 1e-6  # ε: keeps the Cholesky factor of S Sᵀ finite


class NormalFamily(ABC):
    """Distributions of an unconstrained event, by the numbers that parameterise them."""

    @abstractmethod
    def numbers(self, shape: torch.Size) -> int:
        """How many numbers it reads for an event of this shape."""

    @abstractmethod
    def __call__(self, numbers: Tensor, shape: torch.Size) -> Any:
        """The distribution with event shape `shape`, of numbers (..., numbers(shape))."""


class DiagonalFamily(NormalFamily):
    """N(μ, diag σ²)."""

    def numbers(self, shape: torch.Size) -> int:
        return 2 * math.prod(shape)

    def __call__(self, numbers: Tensor, shape: torch.Size) -> Any:
        loc, log_scale = numbers.unflatten(-1, (2, *shape)).unbind(-1 - len(shape))
        return Normal(loc, log_scale.exp()).to_event(len(shape))


class FullRankFamily(NormalFamily):
    """N(μ, S Sᵀ + ε I) of a vector."""

    def numbers(self, shape: torch.Size) -> int:
        return shape[0] + shape[0] ** 2

    def __call__(self, numbers: Tensor, shape: torch.Size) -> Any:
        return MultivariateNormal(numbers[..., : shape[0]], scale_tril=cholesky(numbers, shape[0]))


class LowRankFamily(NormalFamily):
    """N(μ, D Dᵀ + diag σ²) of a vector, with D (k, r)."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def numbers(self, shape: torch.Size) -> int:
        return (2 + self.rank) * shape[0]

    def __call__(self, numbers: Tensor, shape: torch.Size) -> Any:
        k = shape[0]
        loc, log_scale, moved = numbers.split([k, k, k * self.rank], dim=-1)
        i, j = torch.arange(k).to(numbers) + 0.5, torch.arange(self.rank).to(numbers) + 1
        start = (math.pi * torch.outer(i, j) / k).cos()  # D₀
        D = moved.unflatten(-1, (k, self.rank)) + start
        return LowRankMultivariateNormal(loc, D, (2 * log_scale).exp())


def cholesky(numbers: Tensor, k: int) -> Tensor:
    """The Cholesky factor (..., k, k) of S Sᵀ + ε I, of numbers μ, S - I (..., k + k²)."""
    eye = torch.eye(k, dtype=numbers.dtype, device=numbers.device)
    S = numbers[..., k:].unflatten(-1, (k, k)) + eye
    return torch.linalg.cholesky(S @ S.mT + LEAST_VARIANCE * eye)


class Factor(ABC):
    """One site's distribution, of the numbers that a datum has for it.

    Attributes:
        site: the site.
        width: numbers that it reads for a datum.
        size: numbers that a value of a datum is told by, see `features`.
        infer: marks of its `pyro.sample`.
    """

    site: Site
    width: int
    size: int
    infer: Mapping[str, Any]

    @abstractmethod
    def __call__(self, numbers: Tensor) -> Any:
        """The distribution in the site's batch shape, of `numbers` (B, width)."""

    @abstractmethod
    def features(self, value: Tensor) -> Tensor:
        """A value (..., B, *event) as numbers for a network: (..., B, size)."""


class TransformedFactor(Factor):
    """A family of distributions on the whole space, pushed onto the support of the site.

    Attributes:
        pushed: the way from the unconstrained space onto the support.
    """

    def __init__(self, site: Site, declared: Signature, family: NormalFamily) -> None:
        self.site, self._declared, self._family = site, declared, family
        self.infer = {}
        self.pushed = TransformedNormal(site)
        beside = math.prod(beside_data(site, declared))
        self.size = beside * math.prod(self.pushed.shape)
        self._each = family.numbers(self.pushed.shape)
        self.width = beside * self._each

    def __call__(self, numbers: Tensor) -> Any:
        each = arrange(numbers, self.site, self._declared, (self._each,))
        return self.pushed.push(self._family(each, self.pushed.shape))

    def features(self, value: Tensor) -> Tensor:
        """The unconstrained value."""
        unconstrained = self.pushed.unconstrain(value)
        rows = value.shape[: value.dim() - len(self.site.event_shape)]
        return unconstrained.reshape(*rows, self.size)

    def value(self, unconstrained: Tensor) -> tuple[Tensor, Tensor]:
        """The site's value at unconstrained numbers (B, size), and log |det ∂value/∂u| (B,)."""
        u = arrange(unconstrained, self.site, self._declared, tuple(self.pushed.shape))
        value, log_det = self.pushed.constrain(u)
        if log_det is None:
            return value, unconstrained.new_zeros(len(unconstrained))
        data_dim = self._declared.plate(DATA_PLATE).dim or -1
        by_row = log_det.movedim(data_dim, 0).reshape(len(unconstrained), -1)
        return value, by_row.sum(-1)


class Values(Factor):
    """A probability for every value of a discrete site: logits, C of them for C categories."""

    families = ("Bernoulli", "Categorical", "OneHotCategorical")

    def __init__(self, site: Site, declared: Signature, infer: Mapping[str, Any]) -> None:
        self.site, self._declared, self.infer = site, declared, infer
        categorical = site.distribution == "Categorical"
        self._event = (site.values or 0,) if categorical else tuple(site.event_shape)
        self.size = math.prod(self._event)
        self.width = math.prod(beside_data(site, declared)) * self.size

    def __call__(self, numbers: Tensor) -> Any:
        logits = arrange(numbers, self.site, self._declared, self._event)
        if self.site.distribution == "Categorical":
            return Categorical(logits=logits)
        if self.site.distribution == "OneHotCategorical":
            return OneHotCategorical(logits=logits)
        return Bernoulli(logits=logits).to_event(len(self.site.event_shape))

    def features(self, value: Tensor) -> Tensor:
        """Categories one-hot, bits as they are."""
        if self.site.distribution == "Categorical":
            return torch.nn.functional.one_hot(value, self.size).to(torch.get_default_dtype())
        return value.reshape(*value.shape[: value.dim() - len(self._event)], self.size)


def vectors(
    sites: list[Site], declared: Signature, family: NormalFamily, guide: str
) -> list[Factor]:
    """A factor for every site; `guide` is what errors call it.

    Raises:
        ValueError: naming a site whose event is no vector, and the guide to use instead.
    """
    for site in sites:
        if len(TransformedNormal(site).shape) != 1:
            raise ValueError(
                f"{guide} serves vectors, but {site.name!r} has event shape "
                f"{tuple(site.event_shape)}. Use AmortizedNormal, or let the model sample "
                "a vector and reshape it."
            )
    return [TransformedFactor(site, declared, family) for site in sites]


def require_values(site: Site, guide: str) -> None:
    """Refuse a discrete site that `Values` has no family for.

    Raises:
        ValueError: naming it and the remedy.
    """
    if site.distribution not in Values.families:
        raise ValueError(
            f"{guide} serves {', '.join(Values.families)}, but {site.name!r} is "
            f"{site.distribution}. Write its guide by hand."
        )
    if site.distribution == "Categorical" and site.event_shape:
        raise ValueError(
            f"{site.name!r} is an event of several categorical values. Put it in a plate of "
            "its own instead of .to_event(...)."
        )


def arrange(numbers: Tensor, site: Site, declared: Signature, event: tuple[int, ...]) -> Tensor:
    """Numbers (..., B, n) of data in the site's batch shape, with `event` to the right.

    More dimensions than (B, n) only where the site stands in no plate but the data.
    """
    beside = beside_data(site, declared)
    if not beside:
        return numbers.reshape(*numbers.shape[:-1], *event)
    arranged = numbers.reshape(len(numbers), *beside, *event)
    data_dim = declared.plate(DATA_PLATE).dim or -1
    return arranged.movedim(0, len(beside) + 1 + data_dim)


def beside_data(site: Site, declared: Signature) -> list[int]:
    """The batch shape without the data dimension."""
    data_dim = declared.plate(DATA_PLATE).dim
    shape = list(site.batch_shape)
    del shape[len(shape) + (data_dim or -1)]
    return shape
