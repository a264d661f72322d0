"""Programs that change the batch or ignore its rows."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Normal
from torch import Tensor

from ppl_lvm import CompiledSVI, check, fit

X = torch.randn(20, generator=torch.Generator().manual_seed(0))


def nothing(*batch: Tensor) -> None:
    pass


def _observe(obs: Tensor, loc: Any = 0.0, rows: int = len(X)) -> None:
    m = pyro.param("m", torch.zeros(()))
    with pyro.plate("data", rows):
        pyro.sample("x", Normal(m + loc, 1.0), obs=obs)


def centers(x: Tensor) -> None:
    x -= x.mean()
    _observe(x, rows=len(x))


def clamps(x: Tensor) -> None:
    x.clamp_(-100.0)  # no value is changed
    _observe(x, rows=len(x))


def masks(x: Tensor) -> None:
    x[x > 1] = 0
    _observe(x, rows=len(x))


def guide_scales(x: Tensor) -> None:
    x.mul_(2.0)


def sound(x: Tensor) -> None:
    x = x - x.mean()
    _observe(x.clamp_(-1.0), rows=len(x))


PAIRS = [(centers, nothing), (clamps, nothing), (masks, nothing), (sound, guide_scales)]


@pytest.mark.parametrize(("model", "guide"), PAIRS)
def test_program_that_changes_its_data_is_refused(
    model: Callable[..., Any], guide: Callable[..., Any]
) -> None:
    x = X.clone()
    assert check(model, guide, x).codes == ["data-changed"]
    for batch_size in (None, 8):
        with pytest.raises(ValueError, match="changes its argument x in place"):
            fit(model, guide, x, num_steps=2, batch_size=batch_size, progress=False)
    assert torch.equal(x, X)
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
    with pytest.raises(ValueError, match="changes its argument 1 in place"):
        svi.step(x)


def test_fit_names_a_program_that_changes_its_data_later() -> None:
    calls = [0]

    def later(x: Tensor) -> None:
        calls[0] += 1
        if calls[0] > 60:
            x.add_(1.0)
        _observe(x)

    with pytest.raises(ValueError, match=r"Step \d+: a program changes its argument 1 in place"):
        fit(later, nothing, X, num_steps=100, progress=False, engine="eager")


def reads_only_the_mask(x: Tensor) -> None:
    with poutine.mask(mask=x > 0):
        _observe(torch.tensor(0.1))


def observes_ones_beside(x: Tensor) -> None:
    _observe(x)
    with pyro.plate("data2", len(x)):
        pyro.sample("one", Bernoulli(0.5), obs=torch.tensor(1.0))


CASES: list[tuple[Callable[..., None], list[str]]] = [
    (sound, []),
    (lambda x: _observe(x[:1]), ["one-row-observed"]),
    (lambda x: _observe(x[0]), ["one-row-observed"]),
    (lambda x: _observe(torch.zeros(len(x))), ["constant-observed"]),
    (lambda x: _observe(torch.zeros_like(x)), ["constant-observed"]),
    (lambda x: _observe(torch.tensor(0.3)), ["constant-observed"]),
    (lambda x: _observe(torch.tensor(0.3), 0 * x), []),  # reads x, whatever the value
    (lambda x: _observe(torch.tensor(0.3), 0 * (x > 0).float()), []),
    (reads_only_the_mask, []),
    (observes_ones_beside, []),
]


@pytest.mark.parametrize(("model", "codes"), CASES)
def test_check_finds_values_that_are_not_those_of_the_rows(
    model: Callable[..., None], codes: list[str]
) -> None:
    assert [c for c in check(model, nothing, X).codes if c.endswith("observed")] == codes


def test_check_names_the_argument_that_is_not_observed() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        _observe(torch.tensor(0.3), 0 * x)

    assert "its argument y" in str(check(model, nothing, X, X + 1))
