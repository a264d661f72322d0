"""Small right programs without findings, beside wrong twins with one."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import (
    Bernoulli,
    DiscreteHMM,
    GaussianHMM,
    MultivariateNormal,
    Normal,
)
from torch import Tensor, nn

from ppl_lvm.checks import check
from small_programs import nothing

Program = Callable[[Tensor], Any]
SERIES = torch.randn(8, 5, 2, generator=torch.Generator().manual_seed(0))
PIXELS = torch.rand(8, 6, generator=torch.Generator().manual_seed(1))
ROWS = SERIES[:, 0, 0]


def _discrete_hmm(steps: int | None, columns: int = 2) -> Program:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.linspace(-1, 1, 2 * columns).reshape(2, columns))
        emission = Normal(loc, 1.0).to_event(1)
        hmm = DiscreteHMM(torch.zeros(2), torch.zeros(2, 2), emission, duration=steps)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", hmm, obs=x)

    return model


def _gaussian_hmm(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.0)).exp()
    normal = MultivariateNormal(torch.zeros(2), scale * torch.eye(2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", GaussianHMM(normal, torch.eye(2), normal, torch.eye(2), normal), obs=x)


def _gray(validate: bool | None) -> Program:
    def model(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(6))
        with pyro.plate("data", len(x), dim=-1):
            pixels = Bernoulli(logits=logits, validate_args=validate)
            pyro.sample("x", pixels.to_event(1), obs=x)

    return model


def _bit(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Bernoulli(0.5))
        pyro.sample("x", Normal(z, 1.0), obs=x)


def _bit_guide(kind: str) -> Program:
    """With a neural baseline of TraceGraph_ELBO, or one that nothing uses."""
    network, baseline = nn.Linear(1, 1), nn.Linear(1, 1)

    def guide(x: Tensor) -> None:
        pyro.module("network", network)
        pyro.module("baseline", baseline)
        columns = x.unsqueeze(-1)
        options: dict[str, Any] = {
            "value": {"baseline_value": baseline(columns).squeeze(-1)},
            "module": {
                "nn_baseline": nn.Sequential(baseline, nn.Flatten(0)),
                "nn_baseline_input": columns,
            },
            "function": {
                "nn_baseline": lambda value: baseline(value).squeeze(-1),
                "nn_baseline_input": columns,
            },
            "unused": {},
        }
        with pyro.plate("data", len(x), dim=-1):
            q = Bernoulli(logits=network(columns).squeeze(-1))
            pyro.sample("z", q, infer={"baseline": options[kind]})

    return guide


def _states(enumerate_: str) -> Program:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", Bernoulli(0.5), infer={"enumerate": enumerate_})
            pyro.sample("x", Normal(loc[k.long()], 1.0), obs=x)

    return model


def _code(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Normal(0.0, 1.0))
        pyro.sample("x", Normal(z, 1.0), obs=x)


def _factor_guide(**options: Any) -> Program:
    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(8))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(loc, 1.0))
            pyro.factor("penalty", -(z**2), **options)

    return guide


def _local_parameter(size: int) -> Program:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            loc = pyro.param("loc", torch.zeros(size), event_dim=0)
            pyro.sample("z", Normal(loc.mean(), 1.0))

    return guide


RIGHT: dict[str, tuple[Program, Program, Tensor]] = {
    "homogeneous hidden Markov model": (_discrete_hmm(None), nothing, SERIES),
    "hidden Markov model of known length": (_discrete_hmm(5), nothing, SERIES),
    "homogeneous Gaussian chain": (_gaussian_hmm, nothing, SERIES),
    "gray pixels": (_gray(False), nothing, PIXELS),
    "baseline value": (_bit, _bit_guide("value"), ROWS),
    "baseline module": (_bit, _bit_guide("module"), ROWS),
    "baseline function": (_bit, _bit_guide("function"), ROWS),
    "parallel enumeration": (_states("parallel"), nothing, ROWS),
    "local parameter": (_code, _local_parameter(8), ROWS),
    "one parameter for all rows": (_code, _local_parameter(1), ROWS),
}

WRONG: dict[str, tuple[Program, Program, Tensor, str, str | None, str]] = {
    "columns": (_discrete_hmm(None, 3), nothing, SERIES, "value-shape", "x", "(8, 5, 3)"),
    "length": (_discrete_hmm(4), nothing, SERIES, "value-shape", "x", "(8, 4, 2)"),
    "validated pixels": (
        *(_gray(None), nothing, PIXELS, "value-outside-support", "x"),
        "dist.ContinuousBernoulli(logits=...)",
    ),
    "baseline without use": (
        *(_bit, _bit_guide("unused"), ROWS, "no-gradient", "baseline$$$weight"),
        "requires_grad_(False)",
    ),
    "sequential enumeration": (
        *(_states("sequential"), nothing, ROWS, "sequential-enumeration", "k"),
        'infer={"enumerate": "parallel"}',
    ),
    "factor of the guide": (
        *(_code, _factor_guide(), ROWS, "factor-in-guide", "penalty", "has_rsample=True"),
    ),
    "local parameter of another size": (
        *(_code, _local_parameter(6), ROWS, "parameter-size", "loc", "torch.zeros(8)"),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_check_finds_nothing_in_a_right_program(name: str) -> None:
    model, guide, x = RIGHT[name]
    assert [str(issue) for issue in check(model, guide, x) if issue.severity != "note"] == []


@pytest.mark.parametrize("name", WRONG)
def test_check_names_the_fault_of_a_wrong_program(name: str) -> None:
    model, guide, x, code, site, words = WRONG[name]
    issues = [issue for issue in check(model, guide, x) if issue.code == code]
    assert issues, name
    assert issues[0].site == site
    assert words in str(issues[0])


def test_check_takes_a_factor_of_the_guide_that_declares_its_gradient() -> None:
    issues = check(_code, _factor_guide(has_rsample=True), ROWS)
    assert "factor-in-guide" not in issues.codes
