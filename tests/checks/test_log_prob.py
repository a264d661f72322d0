"""Faults of densities: not finite, incomparable, wrong under enumeration."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.ops.indexing import Vindex  # noqa: F401  (the remedies name it)
from torch import Tensor

Program = Callable[..., Any]
Fault = tuple[str, str | None, dict[str, str], str]


def _guide(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def _overflow(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    floor = 1e-25
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, floor), obs=x[:, 0] * 1e15)


def _impossible(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    rate = torch.relu(-1 - w**2)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Poisson(rate), obs=torch.ones(len(x)))


def _huge(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    y = 1e6 * x[:, 1]
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])
        pyro.sample("y", dist.Normal(w, 1.0).expand([8]), obs=y)


def _row_after_row(x: Tensor) -> None:
    table = torch.arange(6.0).reshape(2, 3)
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        # Right for k of shape (8,); enumerated it is (2, 1), and the rows collide.
        loc = torch.stack([table[int(i), 0] for i in k])
        pyro.sample("x", dist.Normal(loc + w, 1.0), obs=x[:, 0])


def _flattened(x: Tensor) -> None:
    """As many values as rows: flattened, values are taken for rows without an exception."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    table = torch.arange(8.0)
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(torch.ones(8)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(table[k.reshape(-1)] + w, 1.0), obs=x[:, 0])


def _centered(x: Tensor) -> None:
    """A mean over rows becomes a mean over values."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    table = torch.arange(3.0)
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(k - k.float().mean() + table[k] + w, 1.0), obs=x[:, 0])


def _rows_beside_values(x: Tensor) -> None:
    """A dimension left of the plates, which is that of the values of an enumerated site."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    table = torch.arange(2.0)
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        shift = torch.tensor([[-1.0], [1.0]]) if k.dim() > 1 else torch.zeros(())
        pyro.sample("x", dist.Normal(table[k] + shift + w, 1.0), obs=x[:, 0])


MODELS: dict[Program, Fault] = {
    _overflow: ("not-finite", "x", {"floor = 1e-25": "floor = 1e15"}, "a floor under scales"),
    _impossible: (
        "not-finite",
        "x",
        {"relu(-1 - w**2)": "relu(-1 - w**2) + 0.1"},
        "bound its parameters away from zero",
    ),
    _huge: ("scales-apart", "y", {"1e6 * x[:, 1]": "x[:, 1]"}, "Standardize the data of 'y'"),
    _row_after_row: (
        "enumeration-fails",
        "k",
        {"torch.stack([table[int(i), 0] for i in k])": "Vindex(table)[k.long(), 0]"},
        "Vindex(table)[k",
    ),
    _flattened: (
        "enumeration-mixes",
        "k",
        {"table[k.reshape(-1)]": "Vindex(table)[k]"},
        "Vindex(table)[k]",
    ),
    _centered: (
        "enumeration-mixes",
        "k",
        {"k - k.float().mean() + table[k]": "Vindex(table)[k] - table.mean()"},
        "Vindex(table)[k]",
    ),
    _rows_beside_values: (
        "enumeration-mixes",
        "k",
        {"table[k] + shift": "Vindex(table)[k]"},
        "Vindex(table)[k]",
    ),
}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_check_reports_density_fault_of_a_model_with_its_remedy(
    model: Program, verify_fault: Any
) -> None:
    verify_fault(model, _guide, model, *MODELS[model])


def test_pyro_does_not_report_mixed_values(x: Tensor) -> None:
    """The reason for the check: the loss is plausible and wrong."""
    for model in (_flattened, _centered, _rows_beside_values):
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, _guide, x)
        assert loss == loss
