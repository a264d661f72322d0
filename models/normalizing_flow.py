"""Normalizing flow of coupling layers.

    u_n ~ N(0, I)            noise       (N, P)
    x_n = T(u_n)             observed    (N, P)

T is invertible, so x determines u, there is no latent, and

    log p(x) = log N(T⁻¹(x); 0, I) + log |det ∂T⁻¹(x)/∂x|

is exact. T is a chain of coupling layers. Each leaves half of the columns unchanged and transforms
the others by increasing functions of one variable whose parameters θ depend on the first half,

    u_b = g(x_b; θ(x_a)),    u_a = x_a,    log |det| = Σ_b log g'(x_b),

so both directions cost one pass of a network. g is affine (Real NVP) or a rational quadratic
spline. Columns are standardized first, by the moments that `initialize` takes from the data.

The guide is empty, the bound is log p(x) itself, and `fit` maximizes the likelihood.
`ppl_lvm.nn.bijections` states why the layers are not Pyro's.

References:
    Dinh, Sohl-Dickstein, Bengio (2017). Density estimation using Real NVP.
    https://arxiv.org/abs/1605.08803
    Durkan, Bekasov, Murray, Papamakarios (2019). Neural spline flows.
    https://arxiv.org/abs/1906.04032
"""

from typing import Any

import pyro
import torch
from pyro.distributions import Normal, TransformedDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.distributions.transforms import AffineTransform

from ppl_lvm.core.messages import unknown
from ppl_lvm.core.validate import Count, Positive
from ppl_lvm.models.parts.examples import example_rows
from ppl_lvm.models.parts.row_checks import check_complete, column_moments
from ppl_lvm.nn import MLP
from ppl_lvm.nn.bijections import Affine, Scalar, Spline
from ppl_lvm.nn.lazy import LazilySized

SCALARS = ("spline", "affine")


class NormalizingFlow(LazilySized, PyroModule):
    """Exact densities of P ≥ 2 columns.

    Args:
        observed: P. If None, inferred from the first batch or a loaded state.
        layers: coupling layers; columns take turns at being transformed.
        hidden: widths of each layer's network.
        scalar: g, "spline" or "affine".
        bins: of a spline on [-bound, bound], beyond which it is the identity.
        bound: in standard deviations of the data.

    Raises:
        ValueError: for fewer than two layers or bins, or a bound that is not positive.
    """

    example_batch = staticmethod(example_rows)

    means: Tensor  # of the columns (P,), and their standard deviations
    scales: Tensor

    def __init__(
        self,
        observed: Count | None = None,
        layers: Count = 6,
        hidden: tuple[Count, ...] = (64, 64),
        scalar: str = "spline",
        bins: Count = 8,
        bound: Positive = 4.0,
    ) -> None:
        super().__init__()
        if scalar not in SCALARS:
            raise ValueError(unknown("scalar map", scalar, SCALARS))
        if layers < 2 or bins < 2 or not bound > 0:
            raise ValueError(
                "A flow needs layers >= 2 (each transforms half of the columns), bins >= 2 and "
                f"bound > 0; got layers={layers}, bins={bins}, bound={bound}."
            )
        self.layers, self.hidden = layers, tuple(hidden)
        self.scalar, self.bins, self.bound = scalar, bins, bound
        self.couplings = nn.ModuleList()
        self.set_sizes(observed)

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P)."""
        self.infer_sizes(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self.density(), obs=x)

    def density(self) -> Any:
        """p(x): its `log_prob` of rows (..., P) is exact, its `rsample` pushes noise forward."""
        if self.observed is None:
            raise ValueError(
                "NormalizingFlow: its number of columns is not known. Build it with observed=P."
            )
        base = Normal(torch.zeros_like(self.means), 1.0).to_event(1)
        couplings = [_Inverse(layer) for layer in reversed(self.couplings)]  # type: ignore[arg-type]
        standard = AffineTransform(self.means, self.scales, event_dim=1)
        return TransformedDistribution(base, [*couplings, standard])

    def noise(self, x: Tensor) -> Tensor:
        """u = T⁻¹(x): (..., P) -> (..., P). Standard normal for data of the flow."""
        u = (x - self.means) / self.scales
        for layer in self.couplings:
            u, _ = layer(u)
        return u

    def initialize(self, x: Tensor) -> None:
        """Set P, means and standard deviations of the columns from rows `x` (N, P).

        Raises:
            ValueError: for a constant column, which has no density, or a missing value.
        """
        self.infer_sizes(x)
        check_complete(x, type(self).__name__)
        means, variance = column_moments(x)
        if (constant := torch.where(variance == 0)[0].tolist()) != []:
            raise ValueError(
                f"Column {constant[0]} is the same in all {len(x)} rows: it has no density. Leave "
                "it out, or add noise to it."
            )
        with torch.no_grad():
            self.means.copy_(means)
            self.scales.copy_(variance.sqrt())

    def resize(self, observed: int, **like: Any) -> None:
        if observed < 2:
            raise ValueError(f"A coupling flow needs at least 2 columns, got {observed}.")
        self.register_buffer("means", torch.zeros(observed))
        self.register_buffer("scales", torch.ones(observed))
        scalar: Scalar = Affine() if self.scalar == "affine" else Spline(self.bins, self.bound)
        columns = torch.arange(observed)
        for layer in range(self.layers):
            # Halves, then odd and even columns, then their complements: every pair interacts.
            moved = columns < observed // 2 if layer % 4 < 2 else columns % 2 == 0
            self.couplings.append(Coupling(moved ^ bool(layer % 2), scalar, self.hidden))

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (len(state["means"]),)


class Coupling(nn.Module):
    """u_b = g(x_b; θ(x_a)), u_a = x_a: from data to noise.

    Args:
        moved: True for the columns b, (P,).
        scalar: g.
        hidden: widths of the network of θ.
    """

    fixed_at: Tensor
    moved_at: Tensor

    def __init__(self, moved: Tensor, scalar: Scalar, hidden: tuple[Count, ...]) -> None:
        super().__init__()
        self._scalar = scalar
        self.register_buffer("moved_at", torch.where(moved)[0], persistent=False)
        self.register_buffer("fixed_at", torch.where(~moved)[0], persistent=False)
        self.network = MLP(
            len(self.fixed_at),
            len(self.moved_at) * scalar.num_parameters,
            hidden,
            activation="silu",
        )
        with torch.no_grad():  # θ = 0 is the identity: initially near it
            last: Any = self.network.layers[-1]
            last.weight.mul_(0.1)
            last.bias.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u (..., P) and log |det ∂u/∂x| (...) of x (..., P)."""
        y, log_slope = self._scalar(x[..., self.moved_at], self._theta(x))
        return x.index_copy(-1, self.moved_at, y), log_slope.sum(-1)

    def inverse(self, u: Tensor) -> Tensor:
        """x of u, (..., P) each."""
        y = self._scalar.inverse(u[..., self.moved_at], self._theta(u))
        return u.index_copy(-1, self.moved_at, y)

    def _theta(self, x: Tensor) -> Tensor:
        theta: Tensor = self.network(x[..., self.fixed_at])
        return theta.unflatten(-1, (len(self.moved_at), -1))


class _Inverse(Transform):
    """A coupling layer from noise to data, as a torch transform."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, layer: Coupling) -> None:
        super().__init__()
        self._layer = layer
        self._last: tuple[Tensor, Tensor] | None = None  # u and log |det ∂u/∂x|

    def _call(self, u: Tensor) -> Tensor:
        return self._layer.inverse(u)

    def _inverse(self, x: Tensor) -> Tensor:
        u, log_det = self._layer(x)
        self._last = (u, log_det)
        return u

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |det ∂y/∂x| of noise x pushed to data y."""
        if self._last is None or self._last[0] is not x:
            self._inverse(y)
        assert self._last is not None
        return -self._last[1]
