"""Parameters of the wrong size inside a plate, without event_dim."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_lvm.checks import check

Program = Callable[..., Any]


def _scalars(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[..., None], torch.ones(3)).to_event(1), obs=x)


def _vectors(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def _guide_of(use: Program, event: int, positive: bool = False) -> Program:
    """A guide whose location uses a parameter "p" of shape (5, 3) inside the plate."""

    def guide(x: Tensor) -> None:
        constraint = constraints.positive if positive else constraints.real
        with pyro.plate("data", len(x), dim=-1):
            p = pyro.param("p", torch.ones(5, 3), constraint=constraint)
            pyro.sample("z", dist.Normal(use(p, x), 1.0).to_event(event))

    return guide


@pytest.mark.parametrize(
    ("model", "use", "event", "remedy"),
    [
        (_scalars, lambda p, x: p[:, 0], 0, "pyro.param('p', torch.zeros(8, 3), event_dim=1)"),
        (_scalars, lambda p, x: x[:, 0] + p[:, 0], 0, "torch.zeros(8, 3)"),
        (_vectors, lambda p, x: p, 1, "torch.zeros(8, 3)"),
        (_vectors, lambda p, x: x + p, 1, "torch.zeros(8, 3)"),
    ],
)
def test_check_names_a_parameter_of_the_wrong_size_at_which_a_guide_fails(
    x: Tensor, model: Program, use: Program, event: int, remedy: str
) -> None:
    (issue,) = check(model, _guide_of(use, event), x).errors
    assert (issue.code, issue.site) == ("parameter-size", "p")
    assert "of shape (5, 3) has 5 values inside plate 'data' of 8 rows" in issue.message
    assert remedy in issue.remedy
    positive = check(model, _guide_of(use, event, positive=True), x).errors[0]
    assert remedy.replace("zeros", "ones") in positive.remedy


def test_check_names_a_parameter_of_the_wrong_size_at_which_a_model_fails(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + pyro.param("b", torch.zeros(5)), 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    (issue,) = check(model, guide, x).errors
    assert (issue.code, issue.site) == ("parameter-size", "b")
    assert "torch.zeros(8), event_dim=0" in issue.remedy


def test_check_advises_an_event_where_the_parameter_has_the_values_of_one_row(x: Tensor) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("p", torch.zeros(3)), 1.0))

    (issue,) = check(_vectors, guide, x).errors
    assert (issue.code, issue.site) == ("undeclared-batch", "z")
    assert ".to_event(1)" in issue.remedy


@pytest.mark.parametrize(
    "use",
    [
        lambda p, x: p[0],
        lambda p, x: p[:1],
        lambda p, x: p[-1, :],
        lambda p, x: p[[2]],
        lambda p, x: p[..., 0, :],
        lambda p, x: p.select(0, 1),
        lambda p, x: torch.select(p, -2, index=1),
        lambda p, x: p.narrow(0, 1, 1),
        lambda p, x: p.unbind()[3],
        lambda p, x: next(iter(p)),
        lambda p, x: p.split(1)[4],
        lambda p, x: p.split(2)[2],
        lambda p, x: p.chunk(5, dim=0)[0][0],
    ],
)
@pytest.mark.parametrize("positive", [False, True])
def test_check_names_a_parameter_of_which_one_row_alone_is_read(
    x: Tensor, use: Program, positive: bool
) -> None:
    issues = [i for i in check(_vectors, _guide_of(use, 1, positive), x) if i.severity != "note"]
    assert [(i.code, i.severity, i.site) for i in issues] == [("parameter-size", "warning", "p")]
    assert "of shape (5, 3) inside plate 'data' of 8 rows is read at index" in issues[0].message
    assert f"torch.{'ones' if positive else 'zeros'}(8, 3), event_dim=1" in issues[0].remedy


@pytest.mark.parametrize(
    "use",
    [
        lambda p, x: p[0] + p[1],
        lambda p, x: p[0] + p.mean(0),
        lambda p, x: p[0] + p.T[:, 1],
        lambda p, x: p[0 * x[:, 0].long()],  # a table, of which these rows need one entry
        lambda p, x: p.sum(0),
        lambda p, x: x @ p[:3],
        lambda p, x: p.unbind()[0] + p.unbind()[1],
        lambda p, x: sum(p),
        lambda p, x: torch.stack(p.unbind()).mean(0),
        lambda p, x: p.split(2)[0].sum(0),
        lambda p, x: p.select(1, 0).sum().expand(3),
        lambda p, x: p.select(0, 0) + p.select(0, 1),
        lambda p, x: p.T.unbind()[0][:3],
        lambda p, x: torch.select(input=p, dim=0, index=0),
        lambda p, x: torch.unbind(input=p)[0],
        lambda p, x: p.unbind(1)[0][:3],
        lambda p, x: p[..., 0].sum().expand(3),
        lambda p, x: p[[0, 1]].sum(0),
        lambda p, x: torch.stack([p[0], p[0 + len(p.shape)]]).sum(0),
    ],
)
def test_check_accepts_tables_and_matrices_inside_a_plate(x: Tensor, use: Program) -> None:
    assert [str(i) for i in check(_vectors, _guide_of(use, 1), x) if i.severity != "note"] == []
