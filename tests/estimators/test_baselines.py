"""Learned state of estimators: independence of current draws, checkpoints."""

import copy
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from pyro.infer import SVI
from torch import Tensor

from ppl_lvm.estimators import CUBO, DecayingAverageBaseline, NeuralBaseline, ScoreFunction
from ppl_lvm.estimators.parts.decaying_average import DecayingAverage

X = torch.linspace(-3.0, 3.0, 8)


def model(x: Tensor) -> None:
    w = pyro.param("w", torch.tensor(0.5))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Bernoulli(0.5))
        pyro.sample("x", Normal(w * z, 0.3), obs=x)


def guide(x: Tensor) -> None:
    a = pyro.param("a", torch.tensor(0.1))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Bernoulli(logits=a * x))


def test_decaying_average_corrects_for_its_initial_value() -> None:
    average = DecayingAverage(0.9)
    assert float(average()) == 0.0
    average.add(torch.tensor([3.0, 5.0]))
    assert float(average()) == pytest.approx(4.0)
    average.add(torch.tensor(0.0))
    assert float(average()) == pytest.approx(0.9 * 4.0 / 1.9)


@pytest.mark.parametrize("beta", [-0.1, 1.0])
def test_decaying_average_baseline_rejects_beta_outside_zero_one(beta: float) -> None:
    with pytest.raises(ValueError, match=f"beta={beta} is too"):
        DecayingAverageBaseline(beta=beta)


@pytest.mark.parametrize("make", [DecayingAverageBaseline, NeuralBaseline, CUBO])
def test_estimator_state_changes_after_use_in_training_mode_only(make: Any) -> None:
    estimator = make(num_particles=2)
    estimator.loss_and_grads(model, guide, X)
    after_one = copy.deepcopy(estimator.state_dict())
    assert float(estimator.average.weight) > 0
    estimator.loss(model, guide, X)  # without gradient the state stays
    estimator.eval()
    estimator.loss_and_grads(model, guide, X)
    for name, value in estimator.state_dict().items():
        assert torch.equal(value, after_one[name])


@pytest.mark.slow
@pytest.mark.parametrize("make", [DecayingAverageBaseline, NeuralBaseline])
def test_baseline_lowers_gradient_variance(make: Any) -> None:
    def spread(estimator: Any) -> Tensor:
        pyro.param("a", torch.tensor(0.1))
        a = pyro.get_param_store()["a"].unconstrained()
        grads = []
        for _ in range(300):
            loss = estimator.differentiable_loss(model, guide, X)
            grads.append(torch.autograd.grad(loss, a)[0])
        return torch.stack(grads).std()

    estimator = make(num_particles=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss=estimator)
    for _ in range(200):
        svi.step(X)
    estimator.eval()
    assert spread(estimator) < 0.9 * spread(ScoreFunction(num_particles=1))


def test_svi_trains_neural_baseline_network() -> None:
    estimator = NeuralBaseline(num_particles=2)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=estimator)
    svi.step(X)
    before = [p.detach().clone() for p in estimator.parameters()]
    svi.step(X)
    assert len(before) == 4
    for old, new in zip(before, estimator.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_neural_baseline_least_squares_has_no_gradient_for_model() -> None:
    estimator = NeuralBaseline(num_particles=2)
    estimator.loss_and_grads(model, guide, X)  # initializes the lazy layer
    pyro.set_rng_seed(3)
    loss = estimator.differentiable_loss(model, guide, X)
    store = pyro.get_param_store()
    ours = [store[n].unconstrained() for n in ("w", "a")]
    with_fit = torch.autograd.grad(loss, ours)
    for parameter in estimator.parameters():
        parameter.requires_grad_(False)
    pyro.set_rng_seed(3)
    estimator.average.total.zero_()
    estimator.average.weight.zero_()
    estimator.average.add(torch.tensor(0.0))
    fixed = torch.autograd.grad(estimator.differentiable_loss(model, guide, X), ours)
    assert torch.allclose(
        with_fit[0], fixed[0]
    )  # the model's gradient does not depend on the baseline


def test_untrained_neural_baseline_loads_trained_state_dict() -> None:
    trained, fresh = NeuralBaseline(hidden=5), NeuralBaseline(hidden=5)
    trained.loss_and_grads(model, guide, X)
    fresh.load_state_dict(trained.state_dict())
    for a, b in zip(trained.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_neural_baseline_rejects_arguments_that_are_not_rows() -> None:
    def subsampled(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=2, dim=-1) as rows:
            z = pyro.sample("z", Bernoulli(0.5))
            pyro.sample("x", Normal(z, 1.0), obs=x[rows])

    def q(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=2, dim=-1):
            pyro.sample("z", Bernoulli(0.5))

    with pytest.raises(ValueError, match="2 rows are in the data plate"):
        NeuralBaseline().loss_and_grads(subsampled, q, X)

    def with_global(x: Tensor) -> None:
        g = pyro.sample("g", Bernoulli(0.5))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(g, 1.0), obs=x)

    def q_global(x: Tensor) -> None:
        pyro.sample("g", Bernoulli(0.5))

    with pytest.raises(ValueError, match="'g' is outside plate 'data'"):
        NeuralBaseline().loss_and_grads(with_global, q_global, X)


def test_copied_estimator_has_state_but_no_pair_structures() -> None:
    estimator = DecayingAverageBaseline()
    estimator.loss_and_grads(model, guide, X)
    copied = copy.deepcopy(estimator)
    assert float(copied.average()) == float(estimator.average()) != 0
    assert not copied._structures
    assert estimator._structures


def test_elbo_module_contains_neural_baseline_parameters() -> None:
    class Program(torch.nn.Module):
        def __init__(self, program: Any) -> None:
            super().__init__()
            self.program = program

        def forward(self, x: Tensor) -> None:
            self.program(x)

    estimator = NeuralBaseline()
    module = estimator(Program(model), Program(guide))
    module(X).backward()
    assert len(list(module.parameters())) == 4
    assert all(p.grad is not None for p in estimator.parameters())
