"""The question whether observed values lie in their support, put as tensor operations."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Delta, Exponential, MultivariateNormal, Normal, Poisson
from torch import Tensor

from ppl_lvm.training.support_check import SupportCheck


def answer(fn: Any, value: Tensor, mask: Any = None) -> bool | None:
    with SupportCheck() as asked, pyro.plate("data", 2, dim=-1):
        if mask is None:
            pyro.sample("x", fn, obs=value)
        else:
            with pyro.poutine.mask(mask=mask):
                pyro.sample("x", fn, obs=value)
    found = asked.all()
    return None if found is None else bool(found)


GAP = torch.tensor([[True, False], [True, True]])
WRONG = torch.tensor([[1.0, -1.0], [2.0, 3.0]])  # outside where GAP is false


@pytest.mark.parametrize(
    ("fn", "value", "inside"),
    [
        (Normal(torch.zeros(2), 1.0), torch.zeros(2), True),
        (Poisson(torch.ones(2)), torch.tensor([1.0, 0.5]), False),
        (Exponential(torch.ones(2, 2)).to_event(1), WRONG, False),
        (Exponential(torch.ones(2, 2)).mask(GAP).to_event(1), WRONG, True),
        (Exponential(torch.ones(2, 2)).mask(~GAP).to_event(1), WRONG, False),
        (Exponential(torch.ones(2)).expand([2]).mask(False), -torch.ones(2), True),
        (MultivariateNormal(torch.zeros(3), torch.eye(3)), torch.zeros(2, 3), True),
    ],
)
def test_each_value_is_asked_where_it_is_not_masked(fn: Any, value: Tensor, inside: bool) -> None:
    assert answer(fn, value) is inside


def test_a_mask_around_the_site_hides_its_rows() -> None:
    fn, value = Bernoulli(torch.full((2,), 0.5)), torch.tensor([1.0, 3.0])
    assert answer(fn, value) is False
    assert answer(fn, value, mask=torch.tensor([True, False])) is True
    assert answer(fn, value, mask=torch.tensor([False, True])) is False


def test_nobody_is_asked_where_validation_was_refused() -> None:
    assert answer(Poisson(torch.ones(2), validate_args=False), torch.tensor([0.5, 1.0])) is None


def test_factors_and_the_rows_of_a_plate_are_no_values_of_the_data() -> None:
    with SupportCheck() as asked:
        with pyro.plate("data", 4, subsample_size=2):
            pyro.factor("f", torch.zeros(2))
        with pyro.poutine.mask(mask=torch.tensor([True, False])):
            pyro.factor("g", torch.zeros(2))
    assert asked.all() is None


def test_any_number_is_in_the_support_of_a_fixed_value() -> None:
    """A wrong one has the log-probability minus infinity, which the loss shows."""
    assert answer(Delta(torch.ones(2)), torch.zeros(2)) is True
    assert answer(Delta(torch.ones(2, 3), event_dim=1), torch.ones(2, 3)) is True


def asked(model: Any, *batch: Tensor) -> bool | None:
    look = SupportCheck()
    with torch.no_grad(), look:
        model(*batch)  # validation is on: seen now
    look.clear()
    with torch.no_grad(), pyro.validation_enabled(False), look:
        model(*batch)
    answer = look.all()
    return None if answer is None else bool(answer)


def test_only_values_that_count_are_asked_about() -> None:
    def model(x: Tensor, check: bool | None = None, mask: Any = True) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.poutine.mask(mask=mask):
            gray = Bernoulli(logits=torch.zeros(2), validate_args=check).to_event(1)
            pyro.sample("x", gray, obs=x)

    x = torch.tensor([[0.0, 1.0], [0.5, 1.0]])
    assert asked(model, x[:1]) is True
    assert asked(model, x) is False
    assert asked(lambda x: model(x, mask=torch.tensor([True, False])), x) is True
    assert asked(lambda x: model(x, check=False), x) is None
