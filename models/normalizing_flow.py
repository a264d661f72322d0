"""Normalising flow: data are noise, pushed forward through an invertible network.

    u_n ~ N(0, I)            noise       (N, P)
    x_n = T(u_n)             observed    (N, P)

There is no latent variable: T is invertible, so x says what u was, and

    log p(x) = log N(T⁻¹(x); 0, I) + log |det ∂T⁻¹(x)/∂x|

is exact. T is a chain of coupling layers. Each keeps half of the columns as they are and moves the
others by increasing maps of one variable whose numbers θ depend on the half that was kept,

    u_b = g(x_b; θ(x_a)),    u_a = x_a,    log |det| = Σ_b log g'(x_b),

so both directions cost one pass of a network. g is affine (Real NVP) or a rational quadratic
spline. First of all, columns are standardised by what `initialize` finds in the data.

The model has no latents, so its guide is empty, its bound is log p(x) itself, and `fit` maximises
the likelihood.

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

from ppl_lvm.models.parts.examples import example_rows
from ppl_lvm.models.parts.row_checks import check_complete, column_moments
from ppl_lvm.nn import MLP
from ppl_lvm.nn.bijections import Affine, Scalar, Spline
from ppl_lvm.nn.lazy import LazilySized

SCALARS = ("spline", "affine")


class NormalizingFlow(LazilySized, PyroModule):
    """Exact densities of P ≥ 2 columns.

    Args:
        observed: P. If None, it is taken from the first data seen, or from a loaded state.
        layers: coupling layers; columns take turns at being moved.
        hidden: widths of each layer's network.
        scalar: g, "spline" or "affine".
        bins: of a spline on [-bound, bound], beyond which it is the identity.
        bound: in standard deviations of the data.

    Raises:
        ValueError: for sizes that make no flow.
    """

    example_batch = staticmethod(example_rows)

    means: Tensor  # of the columns (P,), and their standard deviations
    scales: Tensor

    def __init__(
        self,
        observed: int | None = None,
        layers: int = 6,
        hidden: tuple[int, ...] = (64, 64),
        scalar: str = "spline",
        bins: int = 8,
        bound: float = 4.0,
    ) -> None:
        super().__init__()
        if scalar not in SCALARS:
            raise ValueError(f"There is no scalar map {scalar!r}; choose from {SCALARS}.")
        if layers < 2 or bins < 2 or not bound > 0:
            raise ValueError(
                "A flow needs layers >= 2 (each moves half of the columns), bins >= 2 and "
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
            raise ValueError("This flow has not met data yet: build it with observed=P.")
        base = Normal(torch.zeros_like(self.means), 1.0).to_event(1)
        couplings = [_Inverse(layer) for layer in reversed(self.couplings)]  # type: ignore[arg-type]
        standard = AffineTransform(self.means, self.scales, event_dim=1)
        return TransformedDistribution(base, [*couplings, standard])

    def noise(self, x: Tensor) -> Tensor:
        """u = T⁻¹(x): (..., P) -> (..., P). Standard normal where the flow is right."""
        u = (x - self.means) / self.scales
        for layer in self.couplings:
            u, _ = layer(u)
        return u

    def initialize(self, x: Tensor) -> None:
        """Take P, means and spread of the columns from the rows `x` (N, P).

        Raises:
            ValueError: for a column that never changes: it has no density; for a missing value.
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
        made: Scalar = Affine() if self.scalar == "affine" else Spline(self.bins, self.bound)
        columns = torch.arange(observed)
        for number in range(self.layers):
            # By halves, then by odd and even, and the other way round: each pair meets.
            moved = columns < observed // 2 if number % 4 < 2 else columns % 2 == 0
            self.couplings.append(Coupling(moved ^ bool(number % 2), made, self.hidden))

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (len(state["means"]),)


class Coupling(nn.Module):
    """u_b = g(x_b; θ(x_a)), u_a = x_a: from data towards noise.

    Args:
        moved: which columns are b, (P,) of bool.
        scalar: g.
        hidden: widths of the network of θ.
    """

    kept_at: Tensor
    moved_at: Tensor

    def __init__(self, moved: Tensor, scalar: Scalar, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self._scalar = scalar
        self.register_buffer("moved_at", torch.where(moved)[0], persistent=False)
        self.register_buffer("kept_at", torch.where(~moved)[0], persistent=False)
        self.network = MLP(
            len(self.kept_at), len(self.moved_at) * scalar.numbers, hidden, activation="silu"
        )
        with torch.no_grad():  # θ = 0 is the identity: start near it
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
        theta: Tensor = self.network(x[..., self.kept_at])
        return theta.unflatten(-1, (len(self.moved_at), -1))


class _Inverse(Transform):
    """A coupling layer from noise towards data, as torch's distributions take it."""

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
