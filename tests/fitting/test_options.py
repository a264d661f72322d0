"""Options of `fit`: declaration, and effect."""

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppl_lvm import fit
from ppl_lvm.data import load_data
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.loop import Training
from ppl_lvm.training.options import TrainingOptions
from small_programs import Factor, FactorGuide, FixedDraw, Mean, MeanGuide, factor_data


@pytest.mark.slow
def test_early_stopping_restores_the_best_parameters() -> None:
    x = factor_data(60)
    run = fit(
        Factor(),
        FactorGuide(),
        x[:10],
        validation=x[10:],
        optimizer="Adam(lr=0.1)",
        num_steps=5000,
        validate_every=10,
        patience=3,
    )
    bounds = run.history["validation_bound"]
    assert run.results["steps"] < 5000
    assert len(bounds) - 1 - int(np.argmax(bounds)) == 4
    # The results evaluate the same parameters again, with more draws.
    error = run.results["held_out_monte_carlo_error"]
    assert abs(run.results["held_out"] - max(bounds)) < 5 * error * 8**0.5


def test_kl_annealing_raises_the_weight_linearly_from_zero() -> None:
    x = factor_data(50)
    run = fit(
        Factor(),
        FactorGuide(),
        x,
        objective=FixedDraw(),
        kl_annealing=10,
        num_steps=12,
        optimizer="SGD(lr=0.0)",
    )
    bounds = run.history["bound"]
    steps = np.diff(bounds)
    assert np.allclose(steps[:10], steps[0], rtol=1e-3)  # linear in the weight
    assert steps[0] < 0  # the KL is a cost
    assert steps[10] == 0


@pytest.mark.parametrize(
    "optimizer",
    [
        "AdamW(lr=0.01)",
        "SGD(lr=0.01, momentum=0.9)",
        "RMSprop(lr=0.01)",
        "LBFGS(lr=0.1, max_iter=2)",
        torch.optim.Adam,
        functools.partial(torch.optim.Adagrad, lr=0.1),
    ],
)
def test_fit_takes_any_torch_optimizer(optimizer: Any) -> None:
    run = fit(Factor(), FactorGuide(), factor_data(), optimizer=optimizer, num_steps=60)
    assert np.mean(run.history["bound"][-10:]) > np.mean(run.history["bound"][:3])


def test_schedules_change_the_learning_rate() -> None:
    common: dict[str, Any] = {"num_steps": 20, "validate_every": 5, "validation": 0.2}
    run = fit(Factor(), FactorGuide(), factor_data(), schedule="ExponentialLR(gamma=0.9)", **common)
    assert run.history["learning_rate"][-1] == pytest.approx(0.01 * 0.9**20)
    plateau = "ReduceLROnPlateau(patience=0, threshold=100.0)"
    run = fit(Factor(), FactorGuide(), factor_data(), schedule=plateau, **common)
    assert run.history["learning_rate"][-1] < 0.01


def test_clipping_limits_the_step() -> None:
    model = Mean()
    guide = MeanGuide()
    run = fit(
        model, guide, torch.full((5,), 50.0), clip_norm=0.1, optimizer="SGD(lr=1.0)", num_steps=1
    )
    loc = float(run.parameters()["loc"])
    assert 0 < loc <= 0.1 + 1e-6


@pytest.mark.parametrize("pair", ["factor", "mean", "annealed"])
def test_captured_steps_equal_eager_ones(pair: str) -> None:
    x = factor_data(64) if pair != "mean" else torch.linspace(-1, 3, 64)
    model, guide = (Mean, MeanGuide) if pair == "mean" else (Factor, FactorGuide)
    runs = [
        fit(
            model,
            guide,
            x,
            engine=engine,
            num_steps=60,
            batch_size=24,
            kl_annealing=30 if pair == "annealed" else 0,
        )
        for engine in ("eager", "captured")
    ]
    assert np.allclose(runs[0].history["bound"], runs[1].history["bound"], rtol=1e-5, atol=1e-6)
    for name, value in runs[0].parameters().items():
        assert torch.allclose(value, runs[1].parameters()[name], rtol=1e-4, atol=1e-6), name


def test_enumeration_without_plate_nesting_is_captured() -> None:
    """Pyro infers max_plate_nesting at the first step. `fit` infers it before, because a captured
    step cannot change the objective."""
    x = torch.randn(20)

    def model(x: Tensor) -> None:
        m = pyro.sample("m", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", Bernoulli(0.4), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(m + 2 * c, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("m", Normal(pyro.param("loc", torch.tensor(0.0)), 0.3))

    runs = [
        fit(model, guide, x, objective="TraceEnum_ELBO", num_steps=5, engine=engine)
        for engine in ("captured", "eager")
    ]
    assert runs[0].history["bound"] == pytest.approx(runs[1].history["bound"], rel=1e-5)


@pytest.mark.slow
def test_step_time_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    """The same batch size on 20,000 rows and on 2,000,000 from a file, steps taken in turn.

    All 300 steps are in the first epoch of both, while Pyro validates.
    """
    np.save(tmp_path / "large.npy", np.random.default_rng(0).normal(size=(2_000_000, 3)))
    trainings = []
    for data in (load_data(factor_data(20_000)), load_data(tmp_path / "large.npy")):
        pair = ModelGuidePair(Factor(), FactorGuide(), Trace_ELBO())
        pair.materialize_parameters(*data.batch(torch.arange(32)))
        options = TrainingOptions(num_steps=1, batch_size=32)
        trainings.append(Training(pair, data, None, options))
    seconds: list[list[float]] = [[], []]
    for _ in range(300):
        for i, training in enumerate(trainings):
            begun = time.perf_counter()
            training.step()
            seconds[i].append(time.perf_counter() - begun)
    assert np.median(seconds[1]) < 2 * np.median(seconds[0])
