"""Faults of sites: missing, misnamed, observed, of wrong shapes."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from ppl_lvm.checks import check

Program = Callable[..., Any]
# code, site, replacements in the source, part of the remedy
Fault = tuple[str, str | None, dict[str, str], str]


def _model(x: Tensor) -> None:
    """The model of most guides in this file."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(3)).to_event(1), obs=x)


def _guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _nothing(x: Tensor) -> None:
    pass


def _w_guide(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def _empty(x: Tensor) -> None:
    pyro.param("loc", torch.zeros(2))
    _nothing(x)


def _misnamed(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("zz", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def _too_many(x: Tensor) -> None:
    _guide(x)
    pyro.sample("helper", dist.Normal(0.0, 1.0))


def _samples_observed(x: Tensor) -> None:
    _guide(x)
    with poutine.block(hide_types=["param"]), pyro.plate("again", len(x), dim=-1):
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def _observes(x: Tensor) -> None:
    _guide(x)
    pyro.sample("seen", dist.Normal(0.0, 1.0), obs=x.sum())


def _no_event(x: Tensor) -> None:
    with pyro.plate("two", 2, dim=-2), pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def _mistyped_event(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x[:, 5:7], 1.0).to_event(2))


def _too_wide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def _row_by_row(x: Tensor) -> None:
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z_{i}", dist.Normal(torch.zeros(2), 1.0).to_event(1))


GUIDES: dict[Program, Fault] = {
    _empty: (
        "missing-in-guide",
        "z",
        {
            "_nothing(x)": "with pyro.plate('data', len(x), dim=-1): "
            "pyro.sample('z', dist.Normal(pyro.param('loc'), 1.0).to_event(1))"
        },
        "with pyro.plate('data', len(x), dim=-1): pyro.sample('z', dist.Normal(",
    ),
    _misnamed: ("missing-in-model", "zz", {'"zz"': "'z'"}, "pyro.sample('z', "),
    _too_many: (
        "missing-in-model",
        "helper",
        {"1.0))": "1.0).mask(False), infer={'is_auxiliary': True})"},
        ".mask(False), infer={'is_auxiliary': True}",
    ),
    _samples_observed: (
        "observed-in-guide",
        "x",
        {'pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))': "pass"},
        "Remove pyro.sample('x', ...) from the guide.",
    ),
    _observes: (
        "guide-observes",
        "seen",
        {'pyro.sample("seen", dist.Normal(0.0, 1.0), obs=x.sum())': "pass"},
        "Remove pyro.sample('seen', ...) from the guide",
    ),
    _no_event: (
        "event-dim",
        "z",
        {
            'pyro.plate("two", 2, dim=-2), ': "",
            "Normal(0.0, 1.0)": "Normal(torch.zeros(2), 1.0).to_event(1)",
        },
        ".to_event(1))",
    ),
    _mistyped_event: (
        "event-dim",
        "z",
        {"x[:, 5:7], 1.0).to_event(2)": "x[:, :2], 1.0).to_event(1)"},
        ".to_event(1)",
    ),
    _too_wide: ("shape", "z", {"zeros(3)": "zeros((2,))"}, "(2,)"),
    _row_by_row: (
        "missing-in-guide",
        "z",
        {
            'for i in pyro.plate("data", len(x)):': 'with pyro.plate("data", len(x), dim=-1):',
            'f"z_{i}"': '"z"',
        },
        "with pyro.plate('data', len(x), dim=-1): pyro.sample('z', dist.Normal(",
    ),
}


def _unobserved(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1), poutine.block(hide=["x"]):
        pyro.sample("x", dist.Normal(w, 1.0).expand([3]).to_event(1))


def _column_target(x: Tensor) -> None:
    """A column (8, 1) beside predictions (8,)."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    y = x[:, :1]
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Normal(w, 1.0).expand([8]), obs=y)


def _rows_without_event(x: Tensor) -> None:
    """Rows of three values for a distribution of scalars."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def _stated(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.deterministic("y", w * x[:, 0])


def _flat_target(x: Tensor) -> None:
    """A scalar per row for events of shape (1,)."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    y = x[:, 0]
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Normal(w.reshape(1), 1.0).to_event(1), obs=y)


def _discrete_model(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(k.float() + w, 1.0), obs=x[:, 0])


MODELS: dict[Program, Fault] = {
    _unobserved: (
        "nothing-observed",
        None,
        {', poutine.block(hide=["x"])': "", ".to_event(1))": ".to_event(1), obs=x)"},
        "obs=x)",
    ),
    _stated: (
        "nothing-observed",
        "y",
        {'deterministic("y", w * x[:, 0])': 'sample("y", dist.Normal(w, 1.0), obs=x[:, 0])'},
        "pyro.sample('y', ",
    ),
    _column_target: ("value-shape", "y", {"obs=y)": "obs=y.squeeze(-1))"}, ".squeeze(-1)"),
    _rows_without_event: (
        "value-shape",
        "x",
        {"Normal(w, 1.0)": "Normal(w, torch.ones((3,))).to_event(1)"},
        ".to_event(1), obs=x)",
    ),
    _flat_target: ("value-shape", "y", {"x[:, 0]": "x[:, 0].reshape((8, 1))"}, "(8, 1)"),
    _discrete_model: (
        "discrete-not-enumerated",
        "k",
        {"torch.ones(3)))": 'torch.ones(3)), infer={"enumerate": "parallel"})'},
        'infer={"enumerate": "parallel"})',
    ),
}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.__name__)
def test_check_reports_site_fault_of_a_guide_with_its_remedy(
    guide: Program, verify_fault: Any
) -> None:
    verify_fault(_model, guide, guide, *GUIDES[guide])


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_check_reports_site_fault_of_a_model_with_its_remedy(
    model: Program, verify_fault: Any
) -> None:
    verify_fault(model, _w_guide, model, *MODELS[model])


def test_check_names_both_missing_latents(x: Tensor) -> None:
    def two(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x[:, 0])

    assert [issue.site for issue in check(two, _nothing, x).errors] == ["a", "b"]


def test_check_suggests_no_name_without_a_similar_one(x: Tensor) -> None:
    def two(x: Tensor) -> None:
        first = pyro.sample("first", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            other = pyro.sample("other", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(first + other, 1.0), obs=x[:, 0])

    errors = check(two, _w_guide, x).errors
    assert {(error.code, error.site) for error in errors} == {
        ("missing-in-model", "w"),
        ("missing-in-guide", "first"),
        ("missing-in-guide", "other"),
    }


def _unit(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("u", dist.Unit(-(mu**2).expand(len(x))))
        pyro.sample("x", dist.Normal(mu, torch.ones(3)).to_event(1), obs=x)


def test_unit_latent_names_factor_as_its_remedy() -> None:
    x = torch.zeros(4, 3)

    def guide(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    issues = check(_unit, guide, x)
    assert "unit-latent" in issues.codes
    assert "pyro.factor('u', log_factor)" in str(issues)
    with pytest.raises(ValueError, match=r"'u' ~ Unit: .*pyro.factor\('u', log_factor\)"):
        check(_unit, None, x)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [True, False])
def test_slow_normalization_is_noted_where_each_row_has_its_own(rows: bool) -> None:
    x = torch.zeros(40, 2)

    def model(x: Tensor) -> None:
        size = (len(x),) if rows else ()
        concentration = torch.full(size, 2.0)
        zero = torch.zeros(size)
        with pyro.plate("data", len(x), dim=-1):
            fn = dist.SineBivariateVonMises(zero, zero, concentration, concentration, 0.5 + zero)
            z = pyro.sample("z", fn)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, torch.ones(2)).to_event(1))

    assert ("slow-density" in check(model, guide, x).codes) is rows


@pytest.mark.parametrize(
    ("handler", "both", "noted"),
    [
        (poutine.scale(scale=0.5), False, True),
        (poutine.scale(scale=0.5), True, True),
        (poutine.scale(scale=torch.ones(())), True, False),
        (poutine.mask(mask=torch.tensor(True)), False, True),
        (poutine.mask(mask=torch.tensor(True)), True, False),
    ],
)
def test_tempered_densities_of_the_guide_are_noted(handler: Any, both: bool, noted: bool) -> None:
    """E log p - s log q is no bound on log p(x) for s ≠ 1."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", 50, subsample=torch.arange(len(x)), dim=-1):
            with handler if both else nullcontext():
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", 50, subsample=torch.arange(len(x)), dim=-1), handler:
            pyro.sample("z", dist.Normal(loc, 1.0))

    issues = check(model, guide, torch.randn(5, 3))
    assert issues.ok
    assert [i.site for i in issues if i.code == "tempered-guide"] == ["z"] * noted
