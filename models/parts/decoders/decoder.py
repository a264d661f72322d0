"""Decoder network with a likelihood of P columns.

    x_n ~ p(x | f(h_n)),   f an MLP, h_n the causes of x_n (codes, a label, other columns)

with p one of

    bernoulli         x_np ~ Bernoulli(σ(f_p(h_n)))                  x in {0, 1}
    gaussian          x_np ~ N(f_p(h_n), σ_p²), σ_p² = s_p² + floor  one variance per column
    gaussian-shared   x_np ~ N(f_p(h_n), σ²),   σ²  = s² + floor     one variance for all
    categorical       x_np ~ Categorical(softmax(f_p(h_n)))          x in {0, …, C - 1}

f is in units of the data: with one variance per column, each column's standard deviation; with one
for all columns, the root mean square of these.

The Gaussian likelihoods are unbounded: on a constant column (a corner pixel) the variance can run
to zero and the loss to minus infinity. So variances have a floor, by default a millionth of the
squared unit, and `initialize` warns of such columns.
"""

import math
import warnings
from typing import Any

import torch
from pyro.distributions import Bernoulli, Categorical, Normal, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from ppl_lvm.core.messages import unknown
from ppl_lvm.nn import MLP
from ppl_lvm.nn.lazy import LazilySized, check_width
from ppl_lvm.nn.units import column_units

# Largest standard deviation of a column, in medians, for one variance: beyond, units are different.
_APART = 50.0

LIKELIHOODS = ("bernoulli", "gaussian", "gaussian-shared", "categorical")


class Decoder(LazilySized, PyroModule):
    """p(x | h): a network with `inputs` inputs, and one of the likelihoods above.

    Args:
        inputs: length of h; None: the model sets it (`inputs = …`) before the first batch.
        observed: P. If None, inferred from the first batch or a loaded state.
        hidden: widths of the hidden layers; `()` makes f linear.
        likelihood: one of `LIKELIHOODS`.
        categories: C, for `likelihood="categorical"` only.
        floor: smallest variance of a Gaussian likelihood, as a fraction of the squared unit.

    Raises:
        ValueError: for arguments that do not fit together.
    """

    means: Tensor  # of the columns (P,): what a Gaussian's network adds to
    unit: Tensor  # a Gaussian's unit, of each column (P,) or of all ()
    scale: Tensor  # s in that unit: (P,) or ()

    def __init__(
        self,
        inputs: int | None,
        observed: int | None = None,
        hidden: tuple[int, ...] = (128,),
        likelihood: str = "bernoulli",
        categories: int | None = None,
        floor: float = 1e-6,
    ) -> None:
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ValueError(unknown("likelihood", likelihood, LIKELIHOODS))
        if (likelihood == "categorical") != (categories is not None):
            raise ValueError(
                "likelihood='categorical' needs categories=C, the number of values of a column; "
                f"the other likelihoods take none. Got {likelihood!r}, categories={categories}."
            )
        if (inputs is not None and inputs < 1) or not floor > 0:
            raise ValueError(
                f"A decoder needs latent >= 1 and floor > 0; got latent={inputs}, floor={floor}."
            )
        self.inputs = inputs
        self.hidden = tuple(hidden)
        self.likelihood = likelihood
        self.categories = categories
        self.floor = floor
        self.set_sizes(observed if inputs is not None else None)

    def forward(self, *causes: Tensor) -> Any:
        """p(x | h) for h = `causes` concatenated, each (..., d): event (P,)."""
        out = self.net(side_by_side(*causes))
        if self.likelihood == "bernoulli":
            return Bernoulli(logits=out).to_event(1)
        if self.likelihood == "categorical":
            return Categorical(logits=out.unflatten(-1, (self.observed, -1))).to_event(1)
        scale = (self.scale**2 + self.floor).sqrt()
        return Normal(self.means + self.unit * out, self.unit * scale).to_event(1)

    def mean(self, *causes: Tensor) -> Tensor:
        """Means of x (..., P), or p(x_p = c) (..., P, C)."""
        fn = self(*causes)
        result: Tensor = fn.base_dist.probs if self.likelihood == "categorical" else fn.mean
        return result

    @property
    def dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    def batch_sizes(self, *batch: Tensor, name: str) -> tuple[int, ...]:
        """P of rows (N, P): floating-point numbers, or categories of any dtype."""
        (x,) = batch
        check_width(x, self.observed, name)
        if not x.is_floating_point() and self.likelihood != "categorical":
            raise ValueError(
                f"{name} with likelihood={self.likelihood!r} takes rows of floating-point numbers, "
                f"got {x.dtype}. Pass x.float()."
            )
        return (x.shape[1],)

    def initialize(self, x: Tensor, owner: nn.Module) -> None:
        """Set P and the columns' means and standard deviation from rows `x` (N, P).

        Warns of constant columns where a Gaussian likelihood would learn their variance, and of
        columns in units so different that one variance for all hides the others.

        Raises:
            ValueError: for values outside the likelihood's support, or constant data.
        """
        self.infer_sizes(x, owner=owner)
        _check_support(x, self.likelihood, self.categories)
        if not self.likelihood.startswith("gaussian"):
            return
        variance = x.detach().double().var(0, correction=0)
        constant = torch.where(variance == 0)[0].tolist()
        if len(constant) == x.shape[1]:
            raise ValueError(
                f"All {len(x)} rows are the same: there is no variance to model. Give other data."
            )
        if constant and self.likelihood == "gaussian":
            warnings.warn(
                f"Columns {_shorten(constant)} are constant: their learned variance will sink to "
                f"the floor, {self.floor:g} of the data's, where each adds a constant "
                f"{-0.5 * math.log(self.floor):.1f} nats or more to the bound, which is no "
                "evidence about the model. Leave them out, or use likelihood='gaussian-shared'.",
                stacklevel=3,
            )
        scales, shared = variance.sqrt(), self.likelihood == "gaussian-shared"
        if shared and (ratio := scales.max() / scales[variance > 0].median()) > _APART:
            warnings.warn(
                f"Column {int(scales.argmax())} has a standard deviation of {scales.max():.3g}, "
                f"{ratio:.0f} times the columns' median: with one variance for all columns the "
                "networks hardly see the others. Use likelihood='gaussian', or standardize the "
                "columns: (x - x.mean(0)) / x.std(0).",
                stacklevel=3,
            )
        means, units = column_units(x, common=shared)
        self.means.copy_(means)
        self.unit.copy_(units[0] if shared else units)

    def standardize(self, x: Tensor) -> Tensor:
        """Rows `x` in the units of a Gaussian likelihood; other data as they are."""
        return (x - self.means) / self.unit if self.likelihood.startswith("gaussian") else x

    def resize(self, observed: int, **like: Any) -> None:
        assert self.inputs is not None
        self.net = MLP(self.inputs, observed * (self.categories or 1), self.hidden).to(**like)
        if self.likelihood.startswith("gaussian"):
            shape = (observed,) if self.likelihood == "gaussian" else ()
            self.scale = PyroParam(torch.ones(shape, **like), constraints.positive)
            self.register_buffer("means", torch.zeros(observed, **like))
            self.register_buffer("unit", torch.ones(shape, **like))

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        bias = state[f"net.layers.{2 * len(self.hidden)}.bias"]
        self.inputs = state["net.layers.0.weight"].shape[1]
        return (len(bias) // (self.categories or 1),)


def side_by_side(*parts: Tensor) -> Tensor:
    """Tensors (..., d_i) concatenated to (..., Σ d_i), their batch shapes broadcast."""
    if len(parts) == 1:
        return parts[0]
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], dim=-1)


def _check_support(x: Tensor, likelihood: str, categories: int | None) -> None:
    if likelihood.startswith("gaussian"):
        wrong, expected = ~x.isfinite(), "finite numbers"
        remedy = "Fill or leave out rows with missing values."
    elif likelihood == "bernoulli":
        wrong, expected = (x != 0) & (x != 1), "0 or 1"
        remedy = "Binarize the data, or use likelihood='gaussian-shared'."
    else:
        top = (categories or 1) - 1
        wrong, expected = (x < 0) | (x > top) | (x != x.round()), f"integers 0 to {top}"
        remedy = "Count the values a column takes and set categories to it."
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"likelihood={likelihood!r} needs {expected}, but row {row}, column {column} of x is "
            f"{x[row, column].item():g} ({int(wrong.sum())} such values in all). {remedy}"
        )


def _shorten(columns: list[int]) -> str:
    """Up to eight column numbers, and the number of the others."""
    shown = ", ".join(map(str, columns[:8]))
    return shown if len(columns) <= 8 else f"{shown} and {len(columns) - 8} more"
