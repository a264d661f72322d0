"""Multilevel regression: one line per group, with common hyperparameters.

    m_j   ~ N(0, 2.5²)                         global    (1 + P,)  mean intercept and slopes
    τ_j   ~ HalfNormal(1)                      global    (1 + P,)  standard deviation over groups
    σ     ~ HalfNormal(1)                      global
    β_gj  = m_j + τ_j η_gj,  η_gj ~ N(0, 1)    global    (G, 1 + P)
    y_n   ~ N(β_{g_n} · (1, x_n), σ²)          observed  (N,)

with β and σ for standardized y and x, so that the priors are weak in any units: `initialize` takes
their means and standard deviations from the data. The site "y" and its predictions are in the
data's units, and `coefficients` converts β. A group with few rows borrows strength from the others.
With `centered=True` the latents are the β_g ~ N(m, diag τ²) themselves: better where every group
has many rows, worse where some have few.

Reference:
    Gelman, Hill (2006). Data analysis using regression and multilevel/hierarchical models.
"""

from typing import Any

import pyro
import torch
from pyro.distributions import HalfNormal, Normal
from pyro.nn import PyroModule
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.distributions import Distribution

from ppl_lvm.core.validate import Count
from ppl_lvm.models.parts.examples import example_rows
from ppl_lvm.models.parts.row_checks import check_complete
from ppl_lvm.nn.lazy import LazilySized, check_rows


class HierarchicalRegression(LazilySized, PyroModule):
    """A regression whose coefficients vary by group.

    Args:
        groups: G. If None, inferred from the first batch: give it where a group may have no rows
            there.
        predictors: P. If None, inferred from the first batch or a loaded state.
        centered: True for the latent β, False for η.
    """

    @staticmethod
    def example_batch(seed: int = 0) -> tuple[Tensor, ...]:
        """Rows (24, 4): four groups, two predictors, the response."""
        (x,) = example_rows(seed, 4)
        x[:, 0] = torch.arange(len(x)) % 4
        return (x,)

    size_names = ("predictors",)
    predictors: int | None
    center: Tensor  # of x and y (P + 1,)
    unit: Tensor  # of x and y (P + 1,)

    def __init__(
        self, groups: Count | None = None, predictors: Count | None = None, centered: bool = False
    ) -> None:
        super().__init__()
        self.groups = groups
        self.centered = centered
        self.set_sizes(predictors)

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, 1 + P + 1): group 0 … G - 1, predictors, response."""
        self.infer_sizes(x)
        G, J = self.groups, self.center.shape[0]
        assert G is not None
        one = torch.ones_like(self.center[0])
        m = pyro.sample("mean", Normal(0 * one, 2.5).expand([J]).to_event(1))
        tau = pyro.sample("spread", HalfNormal(one).expand([J]).to_event(1))
        sigma = pyro.sample("noise", HalfNormal(one))
        # Groups are an event dimension, so that a plate of particles fits to their left.
        if self.centered:
            fn = Normal(m[..., None, :], tau[..., None, :]).expand([*m.shape[:-1], G, J])
            beta = pyro.sample("effects", fn.to_event(2))
        else:
            eta = pyro.sample("offsets", Normal(0 * one, 1.0).expand([G, J]).to_event(2))
            beta = m[..., None, :] + tau[..., None, :] * eta  # (…, G, J)
        group, z = x[:, 0].long(), (x[:, 1:-1] - self.center[:-1]) / self.unit[:-1]
        with pyro.plate("data", len(x), dim=-1):
            coefficients = Vindex(beta)[..., group, :]  # (…, N, J)
            line = coefficients[..., 0] + (coefficients[..., 1:] * z).sum(-1)
            line = self.center[-1] + self.unit[-1] * line
            pyro.sample("y", Normal(line, self.unit[-1] * sigma), obs=x[:, -1])

    def initialize(self, x: Tensor) -> None:
        """Set G, P and the columns' units from the rows `x`.

        Raises:
            ValueError: for groups that are not 0, 1, …, a constant column, or a missing value.
        """
        self.infer_sizes(x)
        check_complete(x, type(self).__name__)
        rows = x[:, 1:].detach().double()
        unit = rows.std(0, correction=0)
        if (unit == 0).any():
            column = int((unit == 0).nonzero()[0]) + 1
            raise ValueError(f"Column {column} of x is constant. Leave it out.")
        self.center.copy_(rows.mean(0))
        self.unit.copy_(unit)

    def coefficients(self, beta: Tensor) -> Tensor:
        """Intercepts and slopes (…, G, 1 + P) in the data's units, from β in the model's."""
        slopes = beta[..., 1:] * self.unit[-1] / self.unit[:-1]
        at_zero = beta[..., 0] * self.unit[-1] + self.center[-1]
        return torch.cat([(at_zero - (slopes * self.center[:-1]).sum(-1))[..., None], slopes], -1)

    def infer_sizes(self, *batch: Tensor, owner: nn.Module | None = None) -> None:
        super().infer_sizes(*batch, owner=owner)
        # Values are checked in eager steps with validation only: a captured step cannot read them.
        if self.groups is None or Distribution._validate_args:
            self._infer_groups(batch[0])

    def batch_sizes(self, *batch: Tensor, name: str) -> tuple[int, ...]:
        (x,) = batch
        check_rows(x, None, name)
        P = max(0, x.shape[1] - 2) if self.predictors is None else self.predictors
        if x.shape[1] != P + 2:
            remedy = f", or build it with predictors={x.shape[1] - 2}" if x.shape[1] > 1 else ""
            raise ValueError(
                f"{name} takes {P + 2} columns: group, {P} predictors, response; got "
                f"{x.shape[1]}. Choose columns{remedy}."
            )
        return (P,)

    def _infer_groups(self, x: Tensor) -> None:
        groups = _num_groups(x[:, 0])
        if self.groups is None:
            filled = x[:, 0].unique()
            if len(filled) < groups:
                raise ValueError(
                    f"The groups are {int(filled[0])} to {groups - 1}, and {len(filled)} of the "
                    f"{groups} from 0 on have rows. Number them without gaps, as np.unique(group, "
                    f"return_inverse=True)[1] does, or build the model with groups={groups}."
                )
            self.groups = groups
        if groups > self.groups:
            row = int((x[:, 0] >= self.groups).nonzero()[0])
            raise ValueError(
                f"Row {row} is of group {int(x[row, 0])}, but the groups are 0 to "
                f"{self.groups - 1}. Build the model with groups={groups}: a group without rows "
                "then has the distribution that the groups share."
            )

    def resize(self, predictors: int, **like: Any) -> None:
        self.register_buffer("center", torch.zeros(predictors + 1, **like))
        self.register_buffer("unit", torch.ones(predictors + 1, **like))

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (len(state["center"]) - 1,)


def _num_groups(group: Tensor) -> int:
    """Number of groups, from each row's group (N,).

    Raises:
        ValueError: for a value that is not a group, with its row.
    """
    if (wrong := ~((group >= 0) & (group == group.round()))).any():  # NaN is not one either
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"The first column must be the group, 0, 1, 2, …; row {row} has "
            f"{group[row].item():g}. Order the columns: group, predictors, response."
        )
    return int(group.max()) + 1
