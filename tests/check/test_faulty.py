"""Faulty programs: each fault found at its site under its code, and gone once remedied."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.check import check

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
Program = Callable[..., Any]


def _model(x: Tensor) -> None:
    """What most guides below are meant for."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), torch.ones(3)).to_event(1), obs=x)


def _guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _nothing(x: Tensor) -> None:
    pass


def _positive_model(x: Tensor) -> None:
    w = pyro.sample("w", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])


def _real_model(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])


def _w_guide(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def _discrete_model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(k.float(), 1.0), obs=x[:, 0])


# --- guides that are wrong for _model -------------------------------------------------------


def _misnamed(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("zz", dist.Normal(torch.zeros(2), 1.0).to_event(1))


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


def _too_wide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def _no_plate(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))


def _other_dim(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def _other_plate(x: Tensor) -> None:
    with pyro.plate("rows", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def _no_argument(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2), -torch.ones(2)).to_event(1))


def _by_position(x: Tensor) -> None:
    loc = pyro.param("loc", torch.arange(16.0).reshape(8, 2))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc[: len(x)], 1.0).to_event(1))


def _detached(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2)).detach()
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _numpy_noise(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2)) + float(np.random.rand())
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _python_noise(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2)) + random.gauss(0, 1)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


_CALLS = iter(range(10**6))


def _counter(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2)) + next(_CALLS)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _crashes(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2) @ torch.zeros(3), 1.0).to_event(1))


def _plate_of_another_size(x: Tensor) -> None:
    with pyro.plate("data", len(x) + 1, dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def _second_plate(x: Tensor) -> None:
    with pyro.plate("pairs", 2, dim=-2), pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def _hidden_batch(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(4, 1, 2), 1.0).to_event(1))


def _row_by_row(x: Tensor) -> None:
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z_{i}", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def _nan_location(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.full((2,), torch.nan), 1.0).to_event(1))


def _no_gradient_block(x: Tensor) -> None:
    with torch.no_grad():
        loc = pyro.param("loc", torch.zeros(2)) * 2
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _numpy_detour(x: Tensor) -> None:
    net = pyro.param("loc", torch.zeros(2))
    loc = torch.from_numpy(np.tanh(net.detach().numpy()))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _scaled_by_hand(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=1000 / len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def _mistyped_argument(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x[:, 5:7], 1.0).to_event(2))


def _sometimes(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    if torch.rand(()) < 0.5:
        pyro.sample("helper", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


GUIDES: dict[Program, tuple[str, str | None]] = {
    _nothing: ("missing-in-guide", "z"),
    _misnamed: ("missing-in-model", "zz"),
    _samples_observed: ("observed-in-guide", "x"),
    _observes: ("guide-observes", "seen"),
    _no_event: ("event-dim", "z"),
    _too_wide: ("shape", "z"),
    _no_plate: ("plates", "z"),
    _other_dim: ("plates", "z"),
    _other_plate: ("plates", "z"),
    _no_argument: ("argument", "z"),
    _by_position: ("batch-order", "z"),
    _detached: ("no-gradient", "loc"),
    _numpy_noise: ("foreign-randomness", "z"),
    _python_noise: ("foreign-randomness", "z"),
    _counter: ("non-deterministic", "z"),
    _crashes: ("guide-fails", None),
    _plate_of_another_size: ("plates", "z"),
    _second_plate: ("plates", "z"),
    _hidden_batch: ("undeclared-batch", "z"),
    _row_by_row: ("missing-in-guide", "z"),
    _nan_location: ("argument", "z"),
    _no_gradient_block: ("no-gradient", "loc"),
    _numpy_detour: ("no-gradient", "loc"),
    _scaled_by_hand: ("double-scaling", "z"),
    _mistyped_argument: ("event-dim", "z"),
    _sometimes: ("structure-varies", "helper"),
}


# --- models that are wrong by themselves, or for their guide --------------------------------


def _unplated(x: Tensor) -> None:
    """A batch dimension that nobody declares."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(w, 1.0).expand([8]), obs=x[:, 0])


def _wrong_size(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3, dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[0])


def _one_by_one(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"x_{i}", dist.Normal(w, 1.0), obs=x[i, 0])


def _collide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1), pyro.plate("columns", 3, dim=-1):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def _twice(x: Tensor) -> None:
    for _ in range(2):
        pyro.sample("w", dist.Normal(0.0, 1.0))


def _counts(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Poisson(w.exp()), obs=x[:, 0])


def _bits(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Bernoulli(logits=w.expand(3)).to_event(1), obs=x)


def _classes(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Categorical(logits=w * torch.ones(3)), obs=torch.full((8,), 3))


def _missing_values(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0] / 0 * 0)


def _zero_scale(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, pyro.param("s", torch.tensor(0.0))), obs=x[:, 0])


def _overflow(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1e-25), obs=x[:, 0] * 1e15)


def _scaled(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=100 / len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])


def _unobserved(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(0.0, 1.0))


def _half_outside(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1), obs=x[:, 1])
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[:, 0])


def _huge(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])
        pyro.sample("y", dist.Normal(w, 1.0), obs=1e6 * x[:, 1])


def _branches(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    if torch.rand(()) < 0.5:
        pyro.sample("extra", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])


def _fails(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(w + torch.zeros(4) + torch.zeros(5), 1.0), obs=x)


def _enumeration_breaks(x: Tensor) -> None:
    table = torch.arange(6.0).reshape(2, 3)
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        # Right for k of shape (8,); enumerated it is (2, 1), and the rows collide.
        loc = torch.stack([table[int(i), 0] for i in k])
        pyro.sample("x", dist.Normal(loc + w, 1.0), obs=x[:, 0])


def _numpy_model(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(np.random.rand(), 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])


def _shuffled_by_python(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    order = random.sample(range(len(x)), len(x))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[order, 0])


def _negative_rate(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Poisson(x[:, 0]), obs=torch.ones(len(x)))


def _no_simplex(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Dirichlet(torch.ones(3)), obs=x)


def _zero_beta(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Beta(1.0, 1.0), obs=x[:, 0].clamp(-1, 1))


def _fractions(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Binomial(3, 0.5), obs=torch.full((len(x),), 1.5))


def _too_many(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Binomial(3, 0.5), obs=torch.full((len(x),), 4.0))


def _negative_lifetime(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Exponential(1.0), obs=x[:, 0])


def _nan_parameter(x: Tensor) -> None:
    pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal((x[:, 0] - 9).log(), 1.0), obs=x[:, 0])


def _unused_parameter(x: Tensor) -> None:
    pyro.param("idle", torch.zeros(2))
    _real_model(x)


def _uncorrelated_columns(x: Tensor) -> None:
    """Columns are left as a batch dimension to the right of the rows."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("x", dist.Normal(w, 1.0).expand([len(x), 3]), obs=x)


def _rows_as_event(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])
    pyro.sample("y", dist.Normal(w, 1.0).expand([len(x)]).to_event(1), obs=x[:, 1])


MODELS: dict[Program, tuple[str, str | None]] = {
    _unplated: ("undeclared-batch", "x"),
    _wrong_size: ("plate-size", "x"),
    _one_by_one: ("sequential-plate", "x_0"),
    _collide: ("plates-collide", None),
    _twice: ("duplicate-site", "w"),
    _counts: ("value-outside-support", "x"),
    _bits: ("value-outside-support", "x"),
    _classes: ("value-outside-support", "x"),
    _missing_values: ("value-outside-support", "x"),
    _zero_scale: ("argument", "x"),
    _overflow: ("not-finite", "x"),
    _scaled: ("double-scaling", "x"),
    _unobserved: ("nothing-observed", None),
    _half_outside: ("outside-data-plate", "y"),
    _huge: ("scales-apart", "y"),
    _branches: ("structure-varies", "extra"),
    _fails: ("model-fails", None),
    _enumeration_breaks: ("enumeration-fails", "k"),
    _numpy_model: ("foreign-randomness", "w"),
    _shuffled_by_python: ("foreign-randomness", "x"),
    _negative_rate: ("argument", "x"),
    _no_simplex: ("value-outside-support", "x"),
    _zero_beta: ("value-outside-support", "x"),
    _fractions: ("value-outside-support", "x"),
    _too_many: ("value-outside-support", "x"),
    _negative_lifetime: ("value-outside-support", "x"),
    _nan_parameter: ("argument", "x"),
    _unused_parameter: ("no-gradient", "idle"),
    _uncorrelated_columns: ("undeclared-batch", "x"),
    _rows_as_event: ("outside-data-plate", "y"),
    _discrete_model: ("discrete-not-enumerated", "k"),
}


def _w_guides(distribution: Any) -> Program:
    def guide(x: Tensor) -> None:
        pyro.sample("w", distribution)

    return guide


SUPPORTS: dict[str, tuple[Program, Program, str, str]] = {
    "normal for gamma": (
        _positive_model,
        _w_guides(dist.Normal(5.0, 0.1)),
        "support-wider",
        "w",
    ),
    "point below zero": (
        _positive_model,
        _w_guides(dist.Delta(torch.tensor(-1.0))),
        "support-wider",
        "w",
    ),
    "gamma for normal": (_real_model, _w_guides(dist.Gamma(2.0, 1.0)), "support-narrower", "w"),
    "uniform for gamma": (
        _positive_model,
        _w_guides(dist.Uniform(0.0, 1.0)),
        "support-narrower",
        "w",
    ),
}

PAIRS: dict[str, tuple[Program, Program, str, str | None]] = {
    **{f"guide {g.__name__}": (_model, g, *found) for g, found in GUIDES.items()},
    **{
        f"model {m.__name__}": (m, _nothing if m is _discrete_model else _w_guide, *found)
        for m, found in MODELS.items()
    },
    **SUPPORTS,
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_fault_is_found_at_its_site_with_place_and_remedy(name: str) -> None:
    model, guide, code, site = PAIRS[name]
    findings = check(model, guide, X)
    found = [finding for finding in findings if finding.code == code]
    assert found, f"{code} not among:\n{findings}"
    first = found[0]
    if site is not None:
        assert first.site == site
        assert repr(site) in first.message
    assert first.why
    assert first.remedy
    if code != "nothing-observed":
        assert first.file == __file__, first.file
        assert first.line is not None


@pytest.mark.parametrize("name", PAIRS)
def test_an_error_brings_no_other_error_of_another_site(name: str) -> None:
    model, guide, _, site = PAIRS[name]
    errors = {finding.site for finding in check(model, guide, X).errors}
    allowed = {
        "guide _misnamed": {"zz", "z"},
        "guide _row_by_row": {"z", *(f"z_{i}" for i in range(8))},
    }.get(name, {site})
    assert errors <= allowed or site is None


def test_the_right_pair_has_no_findings() -> None:
    assert len(check(_model, _guide, X)) == 0
    assert str(check(_model, _guide, X)).startswith("Nothing found")


class _Half(PyroModule):
    """A module whose parameter is called `loc`, like another's."""

    def __init__(self, observes: bool) -> None:
        super().__init__()
        self.loc = PyroParam(torch.zeros(2), constraints.real)
        self.observes = observes

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))
            if self.observes:
                mean = z.sum(-1, keepdim=True)
                pyro.sample("x", dist.Normal(mean, torch.ones(3)).to_event(1), obs=x)


def test_two_parameters_of_one_name_are_found() -> None:
    findings = check(_Half(True), _Half(False), X)
    assert [(f.code, f.site) for f in findings] == [("parameter-collision", "loc")]
    with pyro.settings.context(module_local_params=True):
        found = check(_Half(True), _Half(False), X)
    assert found.ok


def test_a_layer_nobody_uses_is_named() -> None:
    class Idle(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(self.used(x), 1.0).to_event(1))

    found = [f.site for f in check(_model, Idle(), X) if f.code == "no-gradient"]
    assert found == ["idle.weight", "idle.bias"]


def test_a_line_that_leaves_the_tensors_is_noted() -> None:
    def branching(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        if loc.sum().item() > 1:
            loc = loc - 1
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    notes = [finding for finding in check(_model, branching, X) if finding.code == "item"]
    assert len(notes) == 1
    assert notes[0].severity == "note"
    assert notes[0].file == __file__


def test_errors_come_first_and_are_printed_with_their_remedy() -> None:
    findings = check(_half_outside, _w_guide, X)
    assert not findings.ok
    assert findings[0].severity == "error"
    assert "remedy: with pyro.plate('data', len(x), dim=-1)" in str(findings)
