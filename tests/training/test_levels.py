"""Training at every level: equal steps, equal resumed runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.compiler import TrainingStep, policy
from ppl_lvm.core.console import Progress
from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training import checkpoint
from ppl_lvm.training.batching import CallSchedule, EpochSampler
from ppl_lvm.training.loop import Training
from ppl_lvm.training.options import TrainingOptions
from small_programs import FactorGuide, factor_data, nothing

LEVELS: list[Any] = ["eager", "captured", pytest.param("compiled", marks=pytest.mark.slow)]


class Factor(PyroModule):
    """z_n ~ N(0, 1), x_n ~ N(w z_n + b, s), with a running mean of x in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 1.5, 3))
        self.b = nn.Parameter(torch.zeros(3))
        self.s = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> None:
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Normal(0.0, 1.0).expand([1]).to_event(1))
            loc = z * self.w + self.b + 0.01 * self.mean
            pyro.sample("x", Normal(loc, self.s).to_event(1), obs=x)


STEPS = 24
OPTIONS: dict[str, Any] = {
    "batch_size": 32,  # the third batch of an epoch has 6
    "schedule": "OneCycleLR(max_lr=0.05, total_steps=24)",
    "clip_norm": 0.5,
    "kl_annealing": 12,
    "validate_every": 12,
}


def training(path: Path | None = None, **changes: Any) -> Training:
    pyro.set_rng_seed(5)
    options = TrainingOptions(**{"num_steps": STEPS, **OPTIONS, **changes})
    x = load_data(factor_data(70))
    pair = ModelGuidePair(Factor(), FactorGuide(), Trace_ELBO())
    pair.materialize_parameters(*x.batch(torch.arange(options.batch_size)))
    return Training(pair, x, load_data(factor_data(20)), options, path=path)


def final_state(run: Training) -> dict[str, Tensor]:
    run.run(Progress(run.options.num_steps, shown=False))
    return run.pair.state()


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("per_call", [1, 4])
def test_steps_at_every_level_equal_eager_steps(level: Any, per_call: int) -> None:
    batch_size = 35 if per_call > 1 else 32  # a smaller last batch would shorten the calls
    eager = training(engine="eager", batch_size=batch_size)
    expected = final_state(eager)
    other = training(engine=level, batch_size=batch_size, steps_per_call=per_call)
    state = final_state(other)
    assert other.step_runner.level == level
    for name, values in eager.history.items():
        assert other.history[name] == pytest.approx(values, rel=1e-5), name
    for name, tensor in expected.items():
        assert torch.allclose(state[name], tensor, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(
    ("optimizer", "level"),
    [
        ("Adam(lr=0.01)", "eager"),
        ("Adam(lr=0.01)", "captured"),
        pytest.param("Adam(lr=0.01)", "compiled", marks=pytest.mark.slow),
        ("SGD(lr=0.01)", "eager"),  # without state
        pytest.param("SGD(lr=0.01)", "captured", marks=pytest.mark.slow),
    ],
)
def test_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    level: Any, optimizer: str, tmp_path: Path
) -> None:
    complete = training(engine=level, optimizer=optimizer)
    expected = final_state(complete)
    part = training(tmp_path / "c", engine=level, optimizer=optimizer)
    while part.step_number < 10:  # before the second smaller batch
        part.step()
    part.save()
    resumed = training(tmp_path / "c", engine=level, optimizer=optimizer)
    checkpoint.load(resumed, tmp_path / "c")
    state = final_state(resumed)
    assert resumed.history == complete.history
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_resumed_training_with_several_steps_per_call_is_equal_bit_for_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {"engine": "compiled", "batch_size": 35, "steps_per_call": 4}
    complete = training(**options)
    expected = final_state(complete)
    part = training(tmp_path / "c", **options)
    part.options = replace(part.options, num_steps=8)  # interrupted after two calls
    part.run(Progress(8, shown=False))
    resumed = training(tmp_path / "c", **options)
    checkpoint.load(resumed, tmp_path / "c")
    assert resumed.step_number == 8
    state = final_state(resumed)
    assert resumed.history["bound"] == complete.history["bound"]
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    one, other = complete.iterates.tensors(), resumed.iterates.tensors()
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("native", [True, False])
def test_runs_do_not_depend_on_the_steps_per_call(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(
            "ppl_lvm.compiler.backend.compiled_step.make_native_loop", lambda *_: None
        )
    monkeypatch.setattr("ppl_lvm.training.step_runner.CALL_SECONDS", 1e6)
    lengths: list[int] = []
    run_steps = TrainingStep.run_steps

    def count(step: Any, data: Any, rows: Any, count: int, **options: Any) -> Any:
        lengths.append(count)
        return run_steps(step, data, rows, count, **options)

    monkeypatch.setattr(TrainingStep, "run_steps", count)
    for batch_size in (32, 35):
        options: dict[str, Any] = {"engine": "compiled", "batch_size": batch_size}
        single = training(steps_per_call=1, **options)
        expected = final_state(single)
        assert not lengths
        several = training(**options)
        state = final_state(several)
        assert max(lengths) == (2 if batch_size == 32 else 12)
        lengths.clear()
        assert several.history == single.history
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
        one, other = single.iterates.tensors(), several.iterates.tensors()
        assert len(one["model/w"]) == STEPS
        assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


@pytest.mark.parametrize(("first", "second"), [("captured", "eager"), ("eager", "captured")])
def test_training_resumes_at_another_level(first: Any, second: Any, tmp_path: Path) -> None:
    complete = training(engine="eager")
    final_state(complete)
    part = training(tmp_path / "c", engine=first)
    while part.step_number < 10:
        part.step()
    part.save()
    resumed = training(tmp_path / "c", engine=second)
    checkpoint.load(resumed, tmp_path / "c")
    final_state(resumed)
    assert resumed.history["bound"] == pytest.approx(complete.history["bound"], rel=1e-5)


@pytest.mark.slow
def test_captured_training_keeps_double_precision() -> None:
    torch.set_default_dtype(torch.float64)
    runs = [
        fit(
            Factor, FactorGuide, factor_data(70).double(), num_steps=20, engine=level, clip_norm=0.3
        )
        for level in ("eager", "captured")
    ]
    assert all(v.dtype == torch.float64 for v in runs[1].parameters().values())
    assert runs[1].history["bound"] == pytest.approx(runs[0].history["bound"], rel=1e-12)


class Counting(PyroModule):
    """A model with a Python number that changes at every step, so that it cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(0.0))
        self.t = 0

    def forward(self, x: Tensor) -> None:
        self.t += 1
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(self.m, 1.0 + 1.0 / self.t), obs=x)


@pytest.mark.filterwarnings("ignore:Particles run one by one")
def test_uncapturable_model_trains_as_with_eager_steps(capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.arange(5.0)
    eager = fit(Counting(), nothing, x, num_steps=8, engine="eager")
    run = fit(Counting(), nothing, x, num_steps=8)
    assert run.history == eager.history
    assert run.results["engine"] == "eager"
    lines = [line for line in capsys.readouterr().err.splitlines() if "Running eagerly" in line]
    assert len(lines) == 1
    assert "Counting.t" in lines[0] or "a number in" in lines[0]
    with pytest.raises(ValueError, match="changes"):
        fit(Counting(), nothing, x, num_steps=8, engine="captured")


def test_resumed_training_keeps_the_capture_error(tmp_path: Path) -> None:
    pyro.set_rng_seed(0)
    x = load_data(torch.arange(5.0))

    def make() -> Training:
        pair = ModelGuidePair(Counting(), nothing, Trace_ELBO())
        pair.materialize_parameters(*x.tensors)
        return Training(
            pair, x, None, TrainingOptions(num_steps=9, batch_size=5), path=tmp_path / "c"
        )

    first = make()
    first.step()
    first.save()
    second = make()
    checkpoint.load(second, tmp_path / "c")
    assert second.step_runner.capture_error == first.step_runner.capture_error is not None


@pytest.mark.parametrize("rows", [70, 64])
@pytest.mark.parametrize("most", [1, 5, 7, 100])
def test_call_schedule_ends_calls_at_evaluations_and_smaller_batches(rows: int, most: int) -> None:
    sampler = EpochSampler(rows, 16, 0)
    calls, every, last = CallSchedule(sampler, most, 10, 53), 10, 53
    step, lengths = 0, []
    while step < last:
        count = calls(step)
        lengths.append(count)
        assert count <= most
        assert step // every == (step + count - 1) // every
        assert not any(sampler.is_smaller(step + i) for i in range(count)) or count == 1
        step += count
    assert step == last
    assert max(lengths) == 1 if most == 1 else max(lengths) > 1


def test_several_processes_take_one_step_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    run = training(engine="compiled", steps_per_call=4)
    assert run._calls(0) > 1
    monkeypatch.setattr("ppl_lvm.core.distributed.world_size", lambda: 2)
    assert training(engine="compiled", steps_per_call=4)._calls(0) == 1


@pytest.fixture
def cheap_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A low estimate of the compiler's cost: "auto" switches at about step 10."""
    costs = policy.CostModel(
        compile_seconds=0.01, compile_seconds_per_node=0.0, dispatch_seconds=1e-5
    )
    monkeypatch.setattr(policy, "COSTS", costs)


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_compiler")
def test_auto_compiles_in_the_background_with_equal_results() -> None:
    eager = training(engine="eager", batch_size=35)
    final_state(eager)
    runs = []
    for _ in range(2):
        lines: list[str] = []
        run = training(engine="auto", batch_size=35)
        run.run(RecordedProgress(lines))
        runs.append(run)
        assert [line.split(",")[0] for line in lines][:1] == [
            "Compiling the step in the background"
        ]
        assert run.step_runner.level == "compiled"
    assert runs[0].history["bound"] == pytest.approx(eager.history["bound"], rel=1e-5)
    assert runs[0].history == runs[1].history
    states = [run.pair.state() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_compiler")
def test_auto_stays_captured_without_a_compiler_and_prints_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    lines: list[str] = []
    run = training(engine="auto", batch_size=35)
    run.run(RecordedProgress(lines))
    assert run.step_runner.level == "captured"
    assert len([line for line in lines if "captured, not compiled" in line]) == 1
    assert "compiler" in lines[-1].lower()


class RecordedProgress(Progress):
    """Progress that records its lines."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(STEPS, shown=False)
        self.lines = lines

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(("steps", "compiles"), [(20_000, False), (200_000, True)])
def test_ahead_of_time_policy_compiles_only_long_runs(steps: int, compiles: bool) -> None:
    run = training(engine="captured", batch_size=35)
    run.step()
    gradient = run.step_runner.training_step.gradient
    arguments, recording = gradient.lookup(run.train.batch(torch.arange(35)), {})
    assert recording is not None
    ahead = policy.AheadOfTimePolicy(steps, 70, 35)
    switch = ahead.switch(recording, arguments)
    assert (switch < steps) == compiles
    assert ahead.compiles_ahead(recording, arguments) == compiles
    for ahead.step in (0, switch - 1, switch):
        assert ahead.compiles_now(recording, arguments) == (compiles and ahead.step >= switch)
