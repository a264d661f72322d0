"""Support checks of observed values as tensor operations."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Delta, Exponential, MultivariateNormal, Normal, Poisson
from torch import Tensor

from ppl_lvm.training.support_check import SupportCheck


def supported(fn: Any, value: Tensor, mask: Any = None) -> bool | None:
    with SupportCheck() as check, pyro.plate("data", 2, dim=-1):
        if mask is None:
            pyro.sample("x", fn, obs=value)
        else:
            with pyro.poutine.mask(mask=mask):
                pyro.sample("x", fn, obs=value)
    result = check.all()
    return None if result is None else bool(result)


MASK = torch.tensor([[True, False], [True, True]])
VALUES = torch.tensor([[1.0, -1.0], [2.0, 3.0]])  # negative where MASK is False


@pytest.mark.parametrize(
    ("fn", "value", "expected"),
    [
        (Normal(torch.zeros(2), 1.0), torch.zeros(2), True),
        (Poisson(torch.ones(2)), torch.tensor([1.0, 0.5]), False),
        (Exponential(torch.ones(2, 2)).to_event(1), VALUES, False),
        (Exponential(torch.ones(2, 2)).mask(MASK).to_event(1), VALUES, True),
        (Exponential(torch.ones(2, 2)).mask(~MASK).to_event(1), VALUES, False),
        (Exponential(torch.ones(2)).expand([2]).mask(False), -torch.ones(2), True),
        (MultivariateNormal(torch.zeros(3), torch.eye(3)), torch.zeros(2, 3), True),
    ],
)
def test_support_check_tests_unmasked_values(fn: Any, value: Tensor, expected: bool) -> None:
    assert supported(fn, value) is expected


def test_support_check_skips_rows_hidden_by_a_mask_handler() -> None:
    fn, value = Bernoulli(torch.full((2,), 0.5)), torch.tensor([1.0, 3.0])
    assert supported(fn, value) is False
    assert supported(fn, value, mask=torch.tensor([True, False])) is True
    assert supported(fn, value, mask=torch.tensor([False, True])) is False


def test_support_check_skips_distributions_without_validation() -> None:
    assert supported(Poisson(torch.ones(2), validate_args=False), torch.tensor([0.5, 1.0])) is None


def test_support_check_skips_factors_and_subsample_sites() -> None:
    with SupportCheck() as check:
        with pyro.plate("data", 4, subsample_size=2):
            pyro.factor("f", torch.zeros(2))
        with pyro.poutine.mask(mask=torch.tensor([True, False])):
            pyro.factor("g", torch.zeros(2))
    assert check.all() is None


def test_support_check_accepts_every_value_of_a_delta() -> None:
    """A wrong value has log-probability minus infinity, which the loss shows."""
    assert supported(Delta(torch.ones(2)), torch.zeros(2)) is True
    assert supported(Delta(torch.ones(2, 3), event_dim=1), torch.ones(2, 3)) is True


def supported_without_validation(model: Any, *batch: Tensor) -> bool | None:
    check = SupportCheck()
    with torch.no_grad(), check:
        model(*batch)  # with validation on
    check.clear()
    with torch.no_grad(), pyro.validation_enabled(False), check:
        model(*batch)
    result = check.all()
    return None if result is None else bool(result)


def test_support_check_skips_masked_rows_and_unvalidated_distributions() -> None:
    def model(x: Tensor, check: bool | None = None, mask: Any = True) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.poutine.mask(mask=mask):
            bits = Bernoulli(logits=torch.zeros(2), validate_args=check).to_event(1)
            pyro.sample("x", bits, obs=x)

    x = torch.tensor([[0.0, 1.0], [0.5, 1.0]])
    assert supported_without_validation(model, x[:1]) is True
    assert supported_without_validation(model, x) is False
    assert (
        supported_without_validation(lambda x: model(x, mask=torch.tensor([True, False])), x)
        is True
    )
    assert supported_without_validation(lambda x: model(x, check=False), x) is None
