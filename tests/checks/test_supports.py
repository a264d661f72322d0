"""Faults of values: supports of guide and data, and arguments."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints  # noqa: F401  (the remedies name it)
from torch import Tensor

from ppl_lvm.checks import check

Program = Callable[..., Any]
Fault = tuple[str, str | None, dict[str, str], str]


def _w_guide(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def _positive(x: Tensor) -> None:
    w = pyro.sample("w", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])


def _real(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])


def _share(x: Tensor) -> None:
    w = pyro.sample("w", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])


def _weights(x: Tensor) -> None:
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)


def _local(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])


def _normal_for_gamma(x: Tensor) -> None:
    loc, scale = pyro.param("loc", torch.tensor(5.0)), 0.1
    pyro.sample("w", dist.Normal(loc, scale))


def _point_below_zero(x: Tensor) -> None:
    loc, scale = pyro.param("loc", torch.tensor(-1.0)), 0.1
    pyro.sample("w", dist.Delta(loc))
    del scale


def _gamma_for_normal(x: Tensor) -> None:
    loc, scale = pyro.param("loc", torch.tensor(2.0)), 1.0
    pyro.sample("w", dist.Gamma(loc, scale))


def _uniform_for_gamma(x: Tensor) -> None:
    loc, scale = pyro.param("loc", torch.tensor(0.0)), 1.0
    pyro.sample("w", dist.Uniform(0 * loc, scale))


def _normal_for_beta(x: Tensor) -> None:
    a, b = pyro.param("a", torch.tensor(0.5)), 0.01
    pyro.sample("w", dist.Normal(a, b))


def _normal_for_weights(x: Tensor) -> None:
    concentration = pyro.param("c", torch.ones(3))
    pyro.sample("w", dist.Normal(concentration, 1.0).to_event(1))


def _negative_scale(x: Tensor) -> None:
    scale = pyro.param("scale", -torch.ones(2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2), scale).to_event(1))


def _nan_location(x: Tensor) -> None:
    loc = pyro.param("loc", -torch.ones(2)).log()
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


GUIDES: dict[Program, tuple[Program, Fault]] = {
    _normal_for_gamma: (
        _positive,
        ("support-wider", "w", {"dist.Normal": "dist.LogNormal"}, "dist.LogNormal(loc, scale)"),
    ),
    _point_below_zero: (
        _positive,
        (
            "support-wider",
            "w",
            {"dist.Delta(loc)": "dist.LogNormal(loc, scale)"},
            "dist.LogNormal(loc, scale)",
        ),
    ),
    _normal_for_beta: (
        _share,
        ("support-wider", "w", {"dist.Normal": "dist.Beta"}, "dist.Beta(a, b)"),
    ),
    _normal_for_weights: (
        _weights,
        (
            "support-wider",
            "w",
            {"dist.Normal(concentration, 1.0).to_event(1)": "dist.Dirichlet(concentration)"},
            "dist.Dirichlet(concentration)",
        ),
    ),
    _gamma_for_normal: (
        _real,
        ("support-narrower", "w", {"dist.Gamma": "dist.Normal"}, "dist.Normal(loc, scale)"),
    ),
    _uniform_for_gamma: (
        _positive,
        (
            "support-narrower",
            "w",
            {"dist.Uniform(0 * loc, ": "dist.LogNormal(loc, "},
            "dist.LogNormal(loc, scale)",
        ),
    ),
    _negative_scale: (
        _local,
        ("argument", "z", {"-torch.ones(2))": "-torch.ones(2)).exp()"}, ".exp()"),
    ),
    _nan_location: (
        _local,
        (
            "argument",
            "z",
            {".log()": ".clamp(min=1e-6).log() + pyro.param('loc')"},
            "clamp(min=1e-6)",
        ),
    ),
}


def _counts(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    loc, scale = w, 1.0
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Poisson((loc * scale).exp()), obs=x[:, 0])


def _bits(x: Tensor) -> None:
    loc, scale = pyro.sample("w", dist.Normal(0.0, 1.0)), torch.ones(3)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Bernoulli(logits=loc * scale).to_event(1), obs=x)


def _classes(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Categorical(logits=w * torch.ones(3)), obs=torch.full((8,), 3))


def _more_than_total(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Binomial(3, logits=w), obs=torch.full((len(x),), 4.0))


def _fractions(x: Tensor) -> None:
    loc = pyro.sample("w", dist.Normal(0.0, 1.0))
    scale = 1.0
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Binomial(3, logits=loc / scale), obs=torch.full((len(x),), 1.5))


def _class_labels_as_bits(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    rate = w.exp()
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Bernoulli(logits=rate), obs=torch.arange(8.0))


def _negative_lifetime(x: Tensor) -> None:
    loc, scale = pyro.sample("w", dist.Normal(0.0, 1.0)), 1.0
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Exponential((loc / scale).exp()), obs=x[:, 0])


def _no_simplex(x: Tensor) -> None:
    loc, scale = pyro.sample("w", dist.Normal(0.0, 1.0)), torch.ones(3)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Dirichlet((loc * scale).exp()), obs=x)


def _zero_beta(x: Tensor) -> None:
    loc, scale = pyro.sample("w", dist.Normal(0.0, 1.0)), 1.0
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Beta((loc / scale).exp(), 1.0), obs=x[:, 0].clamp(-1, 1))


def _missing_values(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    x = x[:, 0].where(x[:, 0] > 0, torch.nan)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0).expand([8]), obs=x)


def _missing_lifetimes(x: Tensor) -> None:
    """Missing values of a density with a singularity at zero."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    shape = pyro.param("shape", torch.tensor(0.0)).exp()
    x = x[:, 0].where(x[:, 0] > 0, torch.nan)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Gamma(shape, w.exp()).expand([8]), obs=x)


def _zero_scale(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    scale = pyro.param("s", torch.tensor(0.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, scale), obs=x[:, 0])


def _negative_rate(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Poisson(x[:, 0] + 0 * w), obs=torch.ones(len(x)))


def _probability_above_one(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Bernoulli(3 + w**2), obs=(x[:, 0] > 0).float())


def _nan_parameter(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal((x[:, 0] - 9).log() + w, 1.0), obs=x[:, 0])


_NORMAL = "dist.Normal(loc, scale)"

MODELS: dict[Program, Fault] = {
    _counts: (
        "value-outside-support",
        "x",
        {"dist.Poisson((loc * scale).exp())": _NORMAL},
        _NORMAL,
    ),
    _bits: ("value-outside-support", "x", {"dist.Bernoulli(logits=loc * scale)": _NORMAL}, _NORMAL),
    _classes: (
        "value-outside-support",
        "x",
        {"torch.ones(3)": "torch.ones(len(x), 4)"},
        "dist.Categorical(logits=",
    ),
    _more_than_total: (
        "value-outside-support",
        "x",
        {"dist.Binomial(3, ": "dist.Binomial(4, "},
        "dist.Binomial(4, ",
    ),
    _fractions: (
        "value-outside-support",
        "x",
        {"dist.Binomial(3, logits=loc / scale)": "dist.LogNormal(loc, scale)"},
        "dist.LogNormal(loc, scale)",
    ),
    _class_labels_as_bits: (
        "value-outside-support",
        "x",
        {"dist.Bernoulli(logits=rate)": "dist.Poisson(rate)"},
        "dist.Poisson(rate)",
    ),
    _negative_lifetime: (
        "value-outside-support",
        "x",
        {"dist.Exponential((loc / scale).exp())": _NORMAL},
        _NORMAL,
    ),
    _no_simplex: (
        "value-outside-support",
        "x",
        {"dist.Dirichlet((loc * scale).exp())": f"{_NORMAL}.to_event(1)"},
        _NORMAL,
    ),
    _zero_beta: (
        "value-outside-support",
        "x",
        {"dist.Beta((loc / scale).exp(), 1.0)": _NORMAL},
        _NORMAL,
    ),
    _missing_values: (
        "value-outside-support",
        "x",
        {".expand([8]), obs=x)": ".expand([8]).mask(~x.isnan()), obs=x.nan_to_num(0.0))"},
        ".mask(~x.isnan()), obs=x.nan_to_num(0.0))",
    ),
    _missing_lifetimes: (
        "value-outside-support",
        "x",
        {".expand([8]), obs=x)": ".expand([8]).mask(~x.isnan()), obs=x.nan_to_num(1.0))"},
        ".mask(~x.isnan()), obs=x.nan_to_num(1.0))",
    ),
    _zero_scale: (
        "argument",
        "x",
        {"torch.tensor(0.0))": "torch.tensor(1.0), constraint=constraints.positive)"},
        "constraint=constraints.positive)",
    ),
    _negative_rate: ("argument", "x", {"x[:, 0] + 0 * w": "(x[:, 0] + 0 * w).exp()"}, ".exp()"),
    _probability_above_one: ("argument", "x", {"3 + w**2": "(3 + w**2).sigmoid()"}, ".sigmoid()"),
    _nan_parameter: (
        "argument",
        "x",
        {"(x[:, 0] - 9)": "(x[:, 0] - 9).clamp(min=1e-6)"},
        ".clamp(min=1e-6)",
    ),
}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.__name__)
def test_check_reports_support_fault_of_a_guide_with_its_remedy(
    guide: Program, verify_fault: Any
) -> None:
    model, fault = GUIDES[guide]
    verify_fault(model, guide, guide, *fault)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_check_reports_support_fault_of_a_model_with_its_remedy(
    model: Program, verify_fault: Any
) -> None:
    verify_fault(model, _w_guide, model, *MODELS[model])


def test_check_shows_the_first_value_outside_the_support(x: Tensor) -> None:
    x[:, 0] = torch.arange(8)
    x[5, 0] = -2.5
    message = check(_counts, _w_guide, x).errors[0].message
    assert "1 observed values of 'x'" in message
    assert "at (5,), is -2.5" in message
