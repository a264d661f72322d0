"""Supported objectives run; the others refuse or are wrong."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from torch import Tensor, nn

from ppl_lvm import estimators
from ppl_lvm.checks import check
from ppl_lvm.estimators import objectives

Program = Callable[..., Any]
_NET = nn.Linear(3, 2)


def _nothing(x: Tensor) -> None:
    pass


def _normal(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(3)).to_event(1), obs=x)


def _normal_guide(x: Tensor) -> None:
    net = pyro.module("net", _NET)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))


def _bits(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.5)).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(3)).to_event(1), obs=x)


def _bits_guide(x: Tensor) -> None:
    net = pyro.module("net", _NET)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Bernoulli(logits=net(x)).to_event(1))


def _mixture(x: Tensor) -> None:
    means = pyro.param("means", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(means[k], 1.0), obs=x[:, 0])


def _drawn_mixture(x: Tensor) -> None:
    means = pyro.param("means", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(means[k], 1.0), obs=x[:, 0])


def _class_guide(x: Tensor) -> None:
    net = pyro.module("net", _NET)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("k", dist.Categorical(logits=net(x)))


def _shared(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    v = pyro.sample("v", dist.Normal(w, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(v, 1.0), obs=x[:, 0])


def _linked_guide(x: Tensor) -> None:
    v = pyro.sample("v", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
    pyro.sample("w", dist.Normal(v / 2, 1.0))


ALL = {*estimators.__all__, *objectives.PYRO_OBJECTIVES}
DRAWN = ALL - {"TraceEnum_ELBO"}
ENUMERATED = ALL - set(objectives.PYRO_OBJECTIVES) | {"TraceEnum_ELBO"}
BERNOULLI_ONLY = {"DisARM", "REBAR", "RELAX"}
DISCRETE = {"GumbelSoftmax", "StraightThrough"}
PATHWISE = {"ELBO", "IWAE", "DReG", "DReGRenyi", "StickingTheLanding"}
PYRO_PATHWISE = {"TraceMeanField_ELBO", "RenyiELBO"}
NEURAL = {"NeuralBaseline"}

PAIRS: dict[str, tuple[Program, Program, set[str]]] = {
    "normal": (_normal, _normal_guide, DRAWN - BERNOULLI_ONLY - DISCRETE - NEURAL),
    "bits": (_bits, _bits_guide, DRAWN - PATHWISE - PYRO_PATHWISE),
    "mixture": (_mixture, _nothing, ENUMERATED - BERNOULLI_ONLY - DISCRETE - NEURAL),
    "classes": (
        _drawn_mixture,
        _class_guide,
        DRAWN - PATHWISE - PYRO_PATHWISE - BERNOULLI_ONLY - DISCRETE,
    ),
    "linked": (
        _shared,
        _linked_guide,
        DRAWN - BERNOULLI_ONLY - DISCRETE - NEURAL - {"TraceMeanField_ELBO"},
    ),
    "enumerated guide": (
        _drawn_mixture,
        config_enumerate(_class_guide),
        {"ELBO", "TraceEnum_ELBO"},
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_supported_objectives_run_and_others_have_a_reason(name: str, x: Tensor) -> None:
    model, guide, suit = PAIRS[name]
    support = check(model, guide, x).estimators
    assert {each.name for each in support} == ALL
    assert {each.name for each in support if each.supported} == suit
    for each in support:
        objective = objectives.objective(each.name)
        if each.supported:
            pyro.clear_param_store()
            loss = objective.loss_and_grads(model, guide, x)
            assert loss == loss
        else:
            assert each.why.endswith(".")
            if each.name in estimators.__all__:
                with pytest.raises(ValueError):
                    objective.loss_and_grads(model, guide, x)


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_pyro_objectives_without_enumeration_are_wrong(x: Tensor) -> None:
    exact = objectives.objective("TraceEnum_ELBO").loss(_mixture, _nothing, x)
    draws = [objectives.objective("Trace_ELBO").loss(_mixture, _nothing, x) for _ in range(3)]
    assert all(abs(draw - exact) > 0.1 for draw in draws)
    why = {each.name: each.why for each in check(_mixture, _nothing, x).estimators}
    assert why["Trace_ELBO"] == (
        "It draws 'k' from the prior instead of enumerating it. Use TraceEnum_ELBO."
    )


def test_nonlinear_objectives_with_global_latents_need_all_rows(x: Tensor) -> None:
    support = {each.name: each for each in check(_shared, _linked_guide, x).estimators}
    assert support["ELBO"].why == ""
    assert support["IWAE"].supported
    assert "on the whole data only" in support["IWAE"].why
    assert "'w'" in support["IWAE"].why or "'v'" in support["IWAE"].why
    assert "depends on 'v'" in support["TraceMeanField_ELBO"].why


def test_printed_issues_name_every_objective(x: Tensor) -> None:
    text = str(check(_bits, _bits_guide, x))
    table = text.partition("\n\n")[2]
    assert max(map(len, table.splitlines())) <= 100
    for name in ALL:
        heads = [line for line in table.replace("\n    ", " ").splitlines() if name in line]
        assert heads, name
    assert "not ELBO" in table


def test_issues_with_an_error_list_no_objectives(x: Tensor) -> None:
    assert check(_normal, _nothing, x).estimators == ()
    assert "Objectives" not in str(check(_normal, _nothing, x))
