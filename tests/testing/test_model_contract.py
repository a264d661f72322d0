"""`check_model` accepts a correct model and rejects wrong ones."""

import itertools
import math
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import MultivariateNormal, Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.nn.lazy import LazilySized, check_rows
from ppl_lvm.testing import check_model

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


class Factor(LazilySized, PyroModule):
    """z ~ N(0, 1), x ~ N(w z, I): log p(x) and p(z | x) in closed form."""

    def __init__(self, observed: int | None = None, loading: float = 0.5) -> None:
        super().__init__()
        self.loading = loading
        self.set_sizes(observed)

    def resize(self, observed: int, **like: Any) -> None:
        self.w = nn.Parameter(torch.full((observed,), self.loading, **like))

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        return (len(state["w"]),)

    def initialize(self, x: Tensor) -> None:
        self.infer_sizes(x)
        if x.isnan().any():
            raise ValueError("Factor takes complete rows, but a value is missing. Fill it in.")

    def forward(self, x: Tensor) -> None:
        self.infer_sizes(x)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", Normal(self.mean(z, x), 1.0).to_event(1), obs=x)

    def mean(self, z: Tensor, x: Tensor) -> Tensor:
        return z[..., None] * self.w

    def log_evidence(self, x: Tensor) -> Tensor:
        covariance = torch.eye(len(self.w)) + self.w[:, None] * self.w
        return MultivariateNormal(torch.zeros_like(self.w), covariance).log_prob(x)

    def posterior(self, x: Tensor) -> None:
        precision = 1 + self.w.square().sum()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(x @ self.w / precision, precision**-0.5))


class ForgetsArgument(Factor):
    def __init__(self, observed: int | None = None, loading: float = 0.5) -> None:
        super().__init__(observed, loading)
        del self.loading
        self.resize = lambda n, **_: setattr(self, "w", nn.Parameter(torch.full((n,), loading)))


class DoesNotLoad(Factor):
    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        raise KeyError


class LoadsIntoNothing(Factor):
    """A plain attribute is part of the model and not of its state."""

    def initialize(self, x: Tensor) -> None:
        super().initialize(x)
        self.shift = x.mean(0)

    def mean(self, z: Tensor, x: Tensor) -> Tensor:
        return super().mean(z, x) + getattr(self, "shift", 0.0)


class TakesAnyWidth(Factor):
    def batch_sizes(self, *batch: Tensor, name: str) -> tuple[int, ...]:
        check_rows(batch[0], None, name)
        return (batch[0].shape[1],)

    def mean(self, z: Tensor, x: Tensor) -> Tensor:
        return z[..., None] * self.w.mean() * torch.ones_like(x)


class PassesMissingValuesOn(Factor):
    def initialize(self, x: Tensor) -> None:
        self.infer_sizes(x)

    def forward(self, x: Tensor) -> None:
        with pyro.validation_enabled(False):
            super().forward(x)


class FailsOnIntegers(Factor):
    def batch_sizes(self, *batch: Tensor, name: str) -> tuple[int, ...]:
        check_rows(batch[0].double(), self.observed, name)
        return (batch[0].shape[1],)

    def mean(self, z: Tensor, x: Tensor) -> Tensor:
        return super().mean(z, x) + 0 * torch.linalg.norm(x)


class HasNoSeed(Factor):
    counter = itertools.count()

    def initialize(self, x: Tensor) -> None:
        super().initialize(x)
        self.w.data += 0.1 * next(self.counter)


class DependsOnOrder(Factor):
    def mean(self, z: Tensor, x: Tensor) -> Tensor:
        place = torch.arange(len(x)).to(x) % 5  # so that mini-batches begin with another place
        return super().mean(z, x) + place[:, None]


class CentersEachBatch(Factor):
    def mean(self, z: Tensor, x: Tensor) -> Tensor:
        return super().mean(z, x) + x.mean(0)


class DetachesParameter(Factor):
    def mean(self, z: Tensor, x: Tensor) -> Tensor:
        return z[..., None] * self.w.detach() + 0 * self.w


class UnderstatesEvidence(Factor):
    def log_evidence(self, x: Tensor) -> Tensor:
        return super().log_evidence(x) - 10.0


class MistakesPosterior(Factor):
    def posterior(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(x @ self.w, 1.0))


class HasNoPlate(Factor):
    def forward(self, x: Tensor) -> None:
        self.infer_sizes(x)
        z = pyro.sample("z", Normal(x.new_zeros(len(x)), 1.0).to_event(1))
        pyro.sample("x", Normal(self.mean(z, x), 1.0), obs=x)


class Overflows(Factor):
    def mean(self, z: Tensor, x: Tensor) -> Tensor:
        return super().mean(z, x) * 1e200


class OwnGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


class DoublesGradient(Factor):
    def mean(self, z: Tensor, x: Tensor) -> Tensor:
        mean: Tensor = OwnGradient.apply(super().mean(z, x))
        return mean


WRONG = {
    ForgetsArgument: "argument 'loading' is not an attribute",
    DoesNotLoad: "does not load before the first batch",
    LoadsIntoNothing: "once loaded",
    TakesAnyWidth: r"\(12, 4\) in place of \(12, 3\) gives None",
    PassesMissingValuesOn: "a missing value gives",
    FailsOnIntegers: "integers raises NotImplementedError",
    HasNoSeed: "its parameters differ between two runs of one seed",
    DependsOnOrder: "in another order",
    CentersEachBatch: "a row's term depends on the other rows",
    DetachesParameter: "its gradient says",
    DoublesGradient: "its gradient says",
    UnderstatesEvidence: "exceeds log p",
    MistakesPosterior: "though its guide is exact",
    HasNoPlate: "reports",
    Overflows: "pyro's SVI raises ValueError",
}


def checked(model: Any, **settings: Any) -> None:
    check_model(
        model, X, exact_log_evidence=model.log_evidence, exact_posterior=model.posterior, **settings
    )


def test_check_model_accepts_a_correct_model() -> None:
    checked(Factor)


SLOW = pytest.mark.slow
SOME = [m if k % 3 == 0 else pytest.param(m, marks=SLOW) for k, m in enumerate(WRONG)]


@pytest.mark.parametrize("model", SOME)
def test_check_model_rejects_a_wrong_twin(model: type[Factor]) -> None:
    with pytest.raises(AssertionError, match=f"(?s)^{model.__name__}: .*{WRONG[model]}"):
        checked(model)


def test_check_model_serves_a_plain_function() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(x.new_zeros(3), 1.0).to_event(1), obs=x)

    def evidence(model: Any, x: Tensor) -> Tensor:
        return -0.5 * (x.square() + math.log(2 * math.pi)).sum(-1)

    def wrong(model: Any, x: Tensor) -> Tensor:
        return evidence(model, x) + 1.0

    check_model(lambda: model, X, exact_log_evidence=evidence)
    with pytest.raises(AssertionError, match="is not log p"):
        check_model(lambda: model, X, exact_log_evidence=wrong)


def test_check_model_takes_a_guide() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("other", Normal(0.0, 1.0))

    with pytest.raises(AssertionError, match="Factor: pyro's SVI raises"):
        checked(Factor, guide=guide)


def test_check_model_restores_the_random_state_and_the_default_dtype() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    checked(Factor)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_default_dtype() == torch.float32
    assert not pyro.get_param_store().keys()
