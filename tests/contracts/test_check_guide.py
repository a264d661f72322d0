"""`check_guide` on guides that break one promise each."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.guides import AmortizedNormal
from ppl_lvm.testing import check_guide

X = torch.linspace(-1, 1, 6)


def _model(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _counts(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        n = pyro.sample("n", dist.Poisson(2.0))
        pyro.sample("x", dist.Normal(n, 1.0), obs=x)


class Sound(PyroModule):
    """q(z | x) = N(a x + b, s); subclasses break one promise each."""

    def __init__(self, model: Any, *batch: Tensor) -> None:
        super().__init__()
        self.a, self.b, self.s = (nn.Parameter(torch.tensor(v)) for v in (0.4, 0.1, 0.5))

    def distribution(self, x: Tensor) -> Any:
        return dist.Normal(self.a * x + self.b, self.s.abs() + 0.1)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.distribution(x))


class Unnormalized(Sound):
    def distribution(self, x: Tensor) -> Any:
        class Twice(dist.Normal):
            def log_prob(self, value: Tensor) -> Tensor:
                return super().log_prob(value) + 0.7

            def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
                return super().expand(batch_shape, self._get_checked_instance(Twice, _instance))

        return Twice(self.a * x + self.b, self.s.abs() + 0.1)


class ScoresByIdentity(Sound):
    """Scores its last draw otherwise than a copy of it."""

    def distribution(self, x: Tensor) -> Any:
        class Cached(dist.Normal):
            def rsample(self, sample_shape: Any = ()) -> Tensor:
                self.draw = super().rsample(torch.Size(sample_shape))
                return self.draw

            def log_prob(self, value: Tensor) -> Tensor:
                change = 1.0 if value is getattr(self, "draw", None) else 0.0
                return super().log_prob(value) + change

            def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
                return super().expand(batch_shape, self._get_checked_instance(Cached, _instance))

        return Cached(self.a * x + self.b, self.s.abs() + 0.1)


class AnotherName(Sound):
    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("u", self.distribution(x))


class NoPlate(Sound):
    def forward(self, x: Tensor) -> None:
        pyro.sample("z", self.distribution(x).to_event(1))


class NarrowSupport(Sound):
    def distribution(self, x: Tensor) -> Any:
        return dist.LogNormal(self.a * x + self.b, self.s.abs() + 0.1)


class UnusedParameter(Sound):
    def distribution(self, x: Tensor) -> Any:
        return dist.Normal(self.a * x + self.b, self.s.detach().abs() + 0.1)


class OtherArguments(Sound):
    def forward(self, x: Tensor, y: Tensor) -> None:
        super().forward(x)


class FixedRows(Sound):
    def __init__(self, model: Any, *batch: Tensor) -> None:
        super().__init__(model, *batch)
        self.b = nn.Parameter(torch.zeros(len(batch[0])))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(self.b), dim=-1):
            pyro.sample("z", self.distribution(x))


class ReshapesDraws(Sound):
    """Takes a draw to have one value per row."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.distribution(x)).reshape(len(x))


class HiddenState(Sound):
    """Its offset is random, and not in its `state_dict`."""

    def __init__(self, model: Any, *batch: Tensor) -> None:
        super().__init__(model, *batch)
        self.offset = torch.randn(()).item()

    def distribution(self, x: Tensor) -> Any:
        return dist.Normal(self.a * x + self.b + self.offset, self.s.abs() + 0.1)


class Unseeded(Sound):
    """Its initial values come from a generator that no seed reaches."""

    generator = torch.Generator().manual_seed(1)

    def __init__(self, model: Any, *batch: Tensor) -> None:
        super().__init__(model, *batch)
        self.b = nn.Parameter(torch.randn((), generator=self.generator))


class NotFinite(Sound):
    def forward(self, x: Tensor) -> None:
        if len(x) < 6:
            x = x / 0
        super().forward(x.nan_to_num(nan=torch.nan, posinf=torch.nan))


def test_check_guide_accepts_a_sound_guide_as_class_instance_and_function() -> None:
    def function(x: Tensor) -> None:
        a = pyro.param("a", torch.tensor(0.5))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(a * x, 0.7))

    for guide in (Sound, Sound(_model, X), function):
        check_guide(guide, _model, (X,))


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (Unnormalized, "integrates to"),
        (ScoresByIdentity, "non-deterministic"),
        (AnotherName, "missing-in-model"),
        (NoPlate, "z"),
        (NarrowSupport, "support-narrower"),
        (UnusedParameter, "no-gradient"),
        (OtherArguments, "call-signature"),
        (FixedRows, "smaller batch"),
        (ReshapesDraws, "vectorized particles"),
        (HiddenState, "after its state_dict was loaded"),
        (Unseeded, "differ under the same seed"),
        (NotFinite, "smaller batch"),
    ],
)
def test_check_guide_rejects_a_guide_that_breaks_a_promise(
    guide: Callable[..., Any], message: str
) -> None:
    with pytest.raises(AssertionError, match=message) as error:
        check_guide(guide, _model, (X,))
    assert guide.__name__ in str(error.value)


def test_check_guide_rejects_a_guide_that_accepts_an_unsupported_model() -> None:
    with pytest.raises(AssertionError, match="does not refuse the site 'n'"):
        check_guide(Sound, _model, (X,), unsupported=[(_counts, (X,), "n")])

    def vague(model: Any, *batch: Tensor) -> Any:
        if model is not _model:
            raise ValueError("not for this model")
        return Sound(model, *batch)

    with pytest.raises(AssertionError, match="does not name 'n'"):
        check_guide(vague, _model, (X,), unsupported=[(_counts, (X,), "n")])
    check_guide(AmortizedNormal, _model, (X,), unsupported=[(_counts, (X,), "n")])


def test_check_guide_rejects_a_guide_that_moves_away_from_the_posterior() -> None:
    def exact(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    def wrong(x: Tensor) -> None:  # the posterior of another model
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.4 * x + 0.1, 0.6))

    check_guide(Sound, _model, (X,), exact=exact)
    with pytest.raises(AssertionError, match="KL to the posterior rises"):
        check_guide(Sound, _model, (X,), exact=wrong)
