"""Monte-Carlo EM against maximum likelihood by quadrature, with a chain that is none as twin."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppl_lvm.em import monte_carlo as mcem
from ppl_lvm.em.monte_carlo import fit_mcem
from ppl_lvm.models import PPCA, FactorModel, GaussianMixture

ANSWERS: dict[str, Any] = {"latent": 1, "likelihood": "bernoulli"}


@pytest.fixture(autouse=True)
def _doubles() -> None:
    torch.set_default_dtype(torch.float64)


def _answers() -> Tensor:
    """120 people's answers to 5 questions, one ability."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(120, 1, generator=draw)
    W = torch.tensor([1.5, 1.0, -1.2, 0.8, 2.0])
    return torch.bernoulli((z * W + torch.linspace(-1, 1, 5)).sigmoid(), generator=draw)


def _most_likely(x: Tensor) -> float:
    """The maximum of the likelihood, nats per datum, by quadrature and gradient."""
    model = FactorModel(**ANSWERS)
    model.initialize(x)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -model.log_evidence(x).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return -loss().item()


def _prior(self: Any, count: int, *, adapt: bool) -> tuple[dict[str, Tensor], float]:
    return {"z": torch.randn(count, 120, 1)}, 1.0


@pytest.mark.slow
def test_it_reaches_the_maximum_that_quadrature_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    x = _answers()
    best, room = _most_likely(x), 10 / (2 * 120)  # what 10 parameters gain by fitting noise
    asked: dict[str, Any] = {"settings": ANSWERS, "iterations": 12, "num_draws": 10, "warmup": 15}
    found = fit_mcem(FactorModel, x, **asked)
    short = best - found.model.log_evidence(x).mean().item()
    assert -1e-9 < short < 0.1 * room
    assert found.draws["z"].shape == (10, 120, 1)
    assert found.parameters()["W"].shape == (5, 1)
    monkeypatch.setattr(mcem._Chain, "draw", _prior)  # a wrong twin: an E-step that sees no data
    wrong = fit_mcem(FactorModel, x, **asked)
    assert best - wrong.model.log_evidence(x).mean().item() > room


class _Groups(PyroModule):
    """Effects of groups outside the plate "data": b_g ~ N(0, 1), y_n ~ Bernoulli(σ(a + b_g))."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))

    def forward(self, y: Tensor, group: Tensor) -> None:
        b = pyro.sample("b", Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(y), dim=-1):
            pyro.sample("y", Bernoulli(logits=self.a + b[..., group]), obs=y)


def test_draws_together_weigh_as_draws_alone() -> None:
    y, group = torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.tensor([0, 1, 2, 2])
    for model, batch, draws in (
        (_Groups(), (y, group), {"b": torch.randn(4, 3)}),
        (PPCA(2, 3), (torch.randn(5, 3),), {"z": torch.randn(4, 5, 2)}),
    ):
        joint = mcem._Joint(model, batch)
        alone = sum(joint._log_joint({k: v[s] for k, v in draws.items()}) for s in range(4)) / 4
        torch.testing.assert_close(joint._q(draws), alone)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (GaussianMixture(2), {}, "'z' is discrete, which NUTS does not draw"),
        (PPCA(1), {"num_draws": 0}, "num_draws must be a whole number"),
    ],
)
def test_what_it_refuses(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_mcem(model, torch.randn(20, 3), **options)
