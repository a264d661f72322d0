"""Restarts in one graph equal separate runs."""

from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Categorical, Normal
from pyro.nn import PyroModule, PyroParam
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.core.errors import NonFiniteError
from ppl_lvm.fitting.svi import fit
from ppl_lvm.runs.run import Run
from ppl_lvm.training import vectorized_restarts as together
from small_programs import FactorGuide, factor_data, nothing

pytestmark = pytest.mark.usefixtures("no_figures")


class Factor(PyroModule):
    """z_n ~ N(0, 1), x_n ~ N((w z_n + b) u, s); the initial b is a row of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3))
        self.b = nn.Parameter(torch.zeros(3))
        self.s = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        self.register_buffer("unit", torch.ones(3))

    def initialize(self, x: Tensor) -> None:
        self.b.data.copy_(x[torch.randint(len(x), ())])
        self.unit.copy_(1 + 0.1 * torch.rand(3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0).expand([1]).to_event(1))
            loc = (z * self.w + self.b) * self.unit
            pyro.sample("x", Normal(loc, self.s).to_event(1), obs=x)


class Mixture(PyroModule):
    """z_n ~ Categorical(w), x_n ~ N(m_z, 1), z summed out."""

    def __init__(self) -> None:
        super().__init__()
        self.w = PyroParam(torch.ones(3) / 3, constraint=constraints.simplex)
        self.m = nn.Parameter(torch.randn(3, 3))

    def initialize(self, x: Tensor) -> None:
        self.m.data.copy_(x[torch.randperm(len(x))[:3]])

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Categorical(self.w), infer={"enumerate": "parallel"})
            pyro.sample("x", Normal(self.m[z], 1.0).to_event(1), obs=x)


class Coins(PyroModule):
    """Coin z_n, x_n ~ N(w z_n, 1): a draw that depends on parameters of the guide."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(torch.tensor([0.5])).to_event(1))
            pyro.sample("x", Normal(z * self.w, 1.0).to_event(1), obs=x)


class CoinGuide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=self.encoder(x)).to_event(1))


def restarted(programs: tuple[Any, Any], count: int = 2, **options: Any) -> Run:
    return fit(*programs, factor_data(70)[:60], restarts=count, **{"num_steps": 30, **options})


def assert_equal_separate_runs(programs: tuple[Any, Any], run: Run, **options: Any) -> None:
    """Every restart has the bounds, and the chosen one the parameters, of a separate run."""
    for entry in run.restarts:
        separate = fit(
            *programs,
            factor_data(70)[:60],
            seed=entry["seed"],
            **{"num_steps": 30, **options, "directory": None},
        )
        assert entry["bound"] == pytest.approx(separate.results["bound"], rel=1e-5)
        if entry["held_out"] is not None:
            assert entry["held_out"] == pytest.approx(separate.results["held_out"], rel=1e-5)
        if entry["chosen"]:
            assert run.history["bound"] == pytest.approx(separate.history["bound"], rel=1e-5)
            assert run.history["validation_bound"] == pytest.approx(
                separate.history["validation_bound"], rel=1e-5
            )
            for name, value in separate.parameters().items():
                assert torch.allclose(run.parameters()[name], value, rtol=1e-4, atol=1e-5), name


OPTIONS: dict[str, Any] = {
    "batch_size": 16,  # of 60: the last batch has 12
    "validation": factor_data(20),  # a share would depend on the seed
    "schedule": "ExponentialLR(gamma=0.97)",
    "clip_norm": 1.0,
    "kl_annealing": 10,
    "validate_every": 10,
}


@pytest.mark.slow
@pytest.mark.parametrize("programs", [(Factor, FactorGuide), (Mixture, nothing)])
@pytest.mark.parametrize("optimizer", ["Adam(lr=0.02)", "SGD(lr=0.05, momentum=0.8)"])
def test_vectorized_restarts_equal_separate_runs(
    programs: tuple[Any, Any], optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**OPTIONS, "optimizer": optimizer}
    run = restarted(programs, **options)
    assert "2 restarts together: step 30/30" in capsys.readouterr().err
    assert len({entry["bound"] for entry in run.restarts}) == 2
    assert_equal_separate_runs(programs, run, **options)


@pytest.mark.slow
def test_compiled_vectorized_restarts_equal_separate_runs() -> None:
    programs = (Factor, FactorGuide)
    run = restarted(programs, engine="compiled")
    assert_equal_separate_runs(programs, run, engine="eager")


def test_restarts_with_bernoulli_draws_run_one_after_the_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    programs = (Coins, CoinGuide)
    run = restarted(programs)
    assert "One restart after the other: it draws by bernoulli" in capsys.readouterr().err
    assert_equal_separate_runs(programs, run)


@pytest.mark.slow
def test_vectorized_restarts_stop_early_separately() -> None:
    torch.set_default_dtype(torch.float64)  # the last step depends on small differences
    programs = (Factor, FactorGuide)
    options = {**OPTIONS, "num_steps": 300, "validate_every": 3, "patience": 1}
    options |= {"optimizer": "Adam(lr=0.1)", "kl_annealing": 0, "schedule": None}
    run = restarted(programs, **options)
    assert len({entry["steps"] for entry in run.restarts}) > 1
    for entry in run.restarts:
        separate = fit(*programs, factor_data(70)[:60], seed=entry["seed"], **options)
        assert entry["steps"] == separate.results["steps"]
        assert entry["held_out"] == pytest.approx(separate.results["held_out"], rel=1e-4)


class StoppedError(Exception):
    pass


@pytest.mark.slow
def test_interrupted_vectorized_restarts_resume_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "batch_size": 20, "checkpoint_seconds": 0.0, "progress": False}
    programs = (Factor, FactorGuide)
    complete = restarted(programs, **options, directory=tmp_path / "complete")
    step = together.VectorizedRestarts._step

    def stop_at_13(self: Any, active: Any) -> None:
        if self.step_number == 13:
            raise StoppedError
        step(self, active)

    with monkeypatch.context() as patch:
        patch.setattr(together.VectorizedRestarts, "_step", stop_at_13)
        with pytest.raises(StoppedError):
            restarted(programs, **options, directory=tmp_path / "resumed")
    resumed = restarted(programs, **options, directory=tmp_path / "resumed", resume=True)
    assert resumed.history == complete.history
    assert [e["bound"] for e in resumed.restarts] == [e["bound"] for e in complete.restarts]


class Falling(PyroModule):
    """x_n ~ N(log m, 1), where m falls below 0 at another step in every restart."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(1.0) + torch.rand(()))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(torch.log(self.m), 1.0).expand([3]).to_event(1), obs=x)


def test_nan_in_one_vectorized_restart_names_the_site() -> None:
    with pytest.raises(NonFiniteError, match="site 'x' of the model has a loc that is NaN"):
        fit(
            Falling,
            nothing,
            factor_data(70) - 9,
            restarts=3,
            num_steps=200,
            optimizer="SGD(lr=0.05)",
        )


@pytest.mark.slow
def test_vectorized_restarts_take_the_rates_that_the_optimizer_decays() -> None:
    """ClippedAdam multiplies its rate by `lrd` at each step."""
    options = {"engine": "captured", "optimizer": partial(ClippedAdam, lr=0.1, lrd=0.8)}
    options["num_steps"] = 12
    programs = (Factor, FactorGuide)
    assert_equal_separate_runs(programs, restarted(programs, **options), **options)
