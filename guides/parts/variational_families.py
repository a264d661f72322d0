"""Factors of q: site distributions as functions of parameters.

    q(z_ns) = T(N(μ, Σ)),   μ and Σ read from λ_ns,   T the bijection onto the site's support

λ_ns comes from an encoder, from a table, or from a refinement of either. A family states how many
parameters it reads for an unconstrained event of a given shape:

    Diagonal    μ, then log σ: 2 k
    FullRank    μ, then S - I row by row, Σ = S Sᵀ + ε I: k + k²
    LowRank     μ, log σ, then D - D₀ (k, r) row by row, Σ = D Dᵀ + diag σ²: 2 k + k r

So all of them start near a standard normal where λ starts near zero. D starts at D₀, r orthogonal
waves D₀_ij = cos(π (i + ½) (j + 1) / k): D = 0 is a stationary point, and a D that changes its
sign from row to row passes through it.
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

from ppl_lvm.authoring import Signature, Site
from ppl_lvm.guides.parts.support_transform import TransformedNormal, row_plate

LEAST_VARIANCE = 1e-6  # ε: keeps the Cholesky factor of S Sᵀ finite


class NormalFamily(ABC):
    """Distributions of an unconstrained event, as functions of their parameters."""

    @abstractmethod
    def num_params(self, shape: torch.Size) -> int:
        """Number of parameters for an event of this shape."""

    @abstractmethod
    def __call__(self, params: Tensor, shape: torch.Size) -> Any:
        """Distribution with event shape `shape`, of params (..., num_params(shape))."""


class DiagonalFamily(NormalFamily):
    """N(μ, diag σ²)."""

    def num_params(self, shape: torch.Size) -> int:
        return 2 * math.prod(shape)

    def __call__(self, params: Tensor, shape: torch.Size) -> Any:
        loc, log_scale = params.unflatten(-1, (2, *shape)).unbind(-1 - len(shape))
        return Normal(loc, log_scale.exp()).to_event(len(shape))


class FullRankFamily(NormalFamily):
    """N(μ, S Sᵀ + ε I) of a vector."""

    def num_params(self, shape: torch.Size) -> int:
        return shape[0] + shape[0] ** 2

    def __call__(self, params: Tensor, shape: torch.Size) -> Any:
        return MultivariateNormal(params[..., : shape[0]], scale_tril=cholesky(params, shape[0]))


class LowRankFamily(NormalFamily):
    """N(μ, D Dᵀ + diag σ²) of a vector, with D (k, r)."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def num_params(self, shape: torch.Size) -> int:
        return (2 + self.rank) * shape[0]

    def __call__(self, params: Tensor, shape: torch.Size) -> Any:
        k = shape[0]
        loc, log_scale, change = params.split([k, k, k * self.rank], dim=-1)
        i, j = torch.arange(k).to(params) + 0.5, torch.arange(self.rank).to(params) + 1
        D0 = (math.pi * torch.outer(i, j) / k).cos()
        D = change.unflatten(-1, (k, self.rank)) + D0
        return LowRankMultivariateNormal(loc, D, (2 * log_scale).exp())


def cholesky(params: Tensor, k: int) -> Tensor:
    """Cholesky factor (..., k, k) of S Sᵀ + ε I, of parameters μ, S - I (..., k + k²)."""
    eye = torch.eye(k, dtype=params.dtype, device=params.device)
    S = params[..., k:].unflatten(-1, (k, k)) + eye
    return torch.linalg.cholesky(S @ S.mT + LEAST_VARIANCE * eye)


class Factor(ABC):
    """One site's distribution as a function of a row's parameters.

    Attributes:
        site: the site.
        width: number of parameters per row.
        size: number of features of a row's value, see `features`.
        infer: `infer` dictionary of its `pyro.sample`.
    """

    site: Site
    width: int
    size: int
    infer: Mapping[str, Any]

    @abstractmethod
    def __call__(self, params: Tensor) -> Any:
        """Distribution in the site's batch shape, of `params` (B, width)."""

    @abstractmethod
    def features(self, value: Tensor) -> Tensor:
        """A value (..., B, *event) as input of a network: (..., B, size)."""


class TransformedFactor(Factor):
    """A family on the unconstrained space, transformed to the support of the site.

    Attributes:
        transform: from the unconstrained space to the support.
    """

    def __init__(self, site: Site, model_signature: Signature, family: NormalFamily) -> None:
        self.site, self._signature, self._family = site, model_signature, family
        self.infer = {}
        self.transform = TransformedNormal(site)
        events = math.prod(other_batch_dims(site, model_signature))
        self.size = events * math.prod(self.transform.shape)
        self._width = family.num_params(self.transform.shape)  # of one event
        self.width = events * self._width

    def __call__(self, params: Tensor) -> Any:
        arranged = arrange(params, self.site, self._signature, (self._width,))
        return self.transform.apply(self._family(arranged, self.transform.shape))

    def features(self, value: Tensor) -> Tensor:
        """The unconstrained value."""
        unconstrained = self.transform.unconstrain(value)
        rows = value.shape[: value.dim() - len(self.site.event_shape)]
        return unconstrained.reshape(*rows, self.size)

    def value(self, unconstrained: Tensor) -> tuple[Tensor, Tensor]:
        """Value of the site at `unconstrained` (B, size), and log |det ∂value/∂u| (B,)."""
        u = arrange(unconstrained, self.site, self._signature, tuple(self.transform.shape))
        value, log_det = self.transform.constrain(u)
        if log_det is None:
            return value, unconstrained.new_zeros(len(unconstrained))
        data_dim = row_plate(self._signature).dim or -1
        by_row = log_det.movedim(data_dim, 0).reshape(len(unconstrained), -1)
        return value, by_row.sum(-1)


class DiscreteFactor(Factor):
    """A probability for every value of a discrete site: logits, C of them for C categories."""

    families = ("Bernoulli", "Categorical", "OneHotCategorical")

    def __init__(self, site: Site, model_signature: Signature, infer: Mapping[str, Any]) -> None:
        self.site, self._signature, self.infer = site, model_signature, infer
        categorical = site.distribution == "Categorical"
        self._event = (site.values or 0,) if categorical else tuple(site.event_shape)
        self.size = math.prod(self._event)
        self.width = math.prod(other_batch_dims(site, model_signature)) * self.size

    def __call__(self, params: Tensor) -> Any:
        logits = arrange(params, self.site, self._signature, self._event)
        if self.site.distribution == "Categorical":
            return Categorical(logits=logits)
        if self.site.distribution == "OneHotCategorical":
            return OneHotCategorical(logits=logits)
        return Bernoulli(logits=logits).to_event(len(self.site.event_shape))

    def features(self, value: Tensor) -> Tensor:
        """Categories one-hot, bits unchanged."""
        if self.site.distribution == "Categorical":
            return torch.nn.functional.one_hot(value, self.size).to(torch.get_default_dtype())
        return value.reshape(*value.shape[: value.dim() - len(self._event)], self.size)


def vector_factors(
    sites: list[Site], model_signature: Signature, family: NormalFamily, guide: str
) -> list[Factor]:
    """A factor for every site; `guide` is its name in errors.

    Raises:
        ValueError: naming a site whose event is no vector, and the guide to use instead.
    """
    for site in sites:
        if len(TransformedNormal(site).shape) != 1:
            raise ValueError(
                f"{guide}: it serves vectors, but {site.name!r} has event shape "
                f"{tuple(site.event_shape)}. Use AmortizedNormal, or let the model sample "
                "a vector and reshape it."
            )
    return [TransformedFactor(site, model_signature, family) for site in sites]


def require_discrete_family(site: Site, guide: str) -> None:
    """Refuse a discrete site that `DiscreteFactor` has no family for.

    Raises:
        ValueError: naming it and the remedy.
    """
    if site.distribution not in DiscreteFactor.families:
        raise ValueError(
            f"{guide}: it serves {', '.join(DiscreteFactor.families)}, but {site.name!r} is "
            f"{site.distribution}. Write its guide by hand."
        )
    if site.distribution == "Categorical" and site.event_shape:
        raise ValueError(
            f"{guide}: {site.name!r} is an event of several categorical values. Put it in a "
            "plate instead of .to_event(...)."
        )


def arrange(
    params: Tensor, site: Site, model_signature: Signature, event: tuple[int, ...]
) -> Tensor:
    """Parameters (..., B, n) of rows in the site's batch shape, with `event` to the right.

    More dimensions than (B, n) are allowed only where that over rows is the site's only plate.
    """
    other = other_batch_dims(site, model_signature)
    if not other:
        return params.reshape(*params.shape[:-1], *event)
    arranged = params.reshape(len(params), *other, *event)
    data_dim = row_plate(model_signature).dim or -1
    return arranged.movedim(0, len(other) + 1 + data_dim)


def other_batch_dims(site: Site, model_signature: Signature) -> list[int]:
    """The batch shape without the data dimension."""
    data_dim = row_plate(model_signature).dim
    shape = list(site.batch_shape)
    del shape[len(shape) + (data_dim or -1)]
    return shape
