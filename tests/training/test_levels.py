"""fit at every level of the engine: the same steps, the same run when resumed."""

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

from ppl_lvm.compiler import policy
from ppl_lvm.core.console import Progress
from ppl_lvm.data import load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training import checkpoint as resume
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
ASKED: dict[str, Any] = {
    "batch_size": 32,  # and 6 left over in every third batch
    "schedule": "OneCycleLR(max_lr=0.05, total_steps=24)",
    "clip_norm": 0.5,
    "kl_annealing": 12,
    "validate_every": 12,
}


def training(path: Path | None = None, **asked: Any) -> Training:
    pyro.set_rng_seed(5)
    options = TrainingOptions(**{"num_steps": STEPS, **ASKED, **asked})
    x = load_data(factor_data(70))
    pair = ModelGuidePair(Factor(), FactorGuide(), Trace_ELBO())
    pair.materialize_parameters(*x.batch(torch.arange(options.batch_size)))
    return Training(pair, x, load_data(factor_data(20)), options, path=path)


def to_the_end(run: Training) -> dict[str, Tensor]:
    run.run(Progress(run.options.num_steps, shown=False))
    return run.pair.state()


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("per_call", [1, 4])
def test_every_level_takes_the_eager_steps(level: Any, per_call: int) -> None:
    batch_size = 35 if per_call > 1 else 32  # in a ragged epoch calls would be short
    eager = training(engine="eager", batch_size=batch_size)
    wanted = to_the_end(eager)
    other = training(engine=level, batch_size=batch_size, steps_per_call=per_call)
    found = to_the_end(other)
    assert other.step_runner.level == level
    for name, values in eager.history.items():
        assert other.history[name] == pytest.approx(values, rel=1e-5), name
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(
    ("optimizer", "level"),
    [
        ("Adam(lr=0.01)", "eager"),
        ("Adam(lr=0.01)", "captured"),
        pytest.param("Adam(lr=0.01)", "compiled", marks=pytest.mark.slow),
        ("SGD(lr=0.01)", "eager"),  # which keeps no state between steps
        ("SGD(lr=0.01)", "captured"),
    ],
)
def test_a_resumed_run_is_the_same_bit_for_bit(level: Any, optimizer: str, tmp_path: Path) -> None:
    whole = training(engine=level, optimizer=optimizer)
    wanted = to_the_end(whole)
    part = training(tmp_path / "c", engine=level, optimizer=optimizer)
    while part.step_number < 10:  # before the second small batch has been seen
        part.step()
    part.save()
    again = training(tmp_path / "c", engine=level, optimizer=optimizer)
    resume.load(again, tmp_path / "c")
    found = to_the_end(again)
    assert again.history == whole.history
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.slow
def test_so_is_one_of_many_steps_a_call(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"engine": "compiled", "batch_size": 35, "steps_per_call": 4}
    whole = training(**asked)
    wanted = to_the_end(whole)
    part = training(tmp_path / "c", **asked)
    part.options = replace(part.options, num_steps=8)  # interrupted after two calls
    part.run(Progress(8, shown=False))
    again = training(tmp_path / "c", **asked)
    resume.load(again, tmp_path / "c")
    assert again.step_number == 8
    found = to_the_end(again)
    assert again.history["bound"] == whole.history["bound"]
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    one, other = whole.iterates.tensors(), again.iterates.tensors()
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


@pytest.mark.parametrize(("first", "second"), [("captured", "eager"), ("eager", "captured")])
def test_a_run_resumes_at_another_level(first: Any, second: Any, tmp_path: Path) -> None:
    whole = training(engine="eager")
    to_the_end(whole)
    part = training(tmp_path / "c", engine=first)
    while part.step_number < 10:
        part.step()
    part.save()
    again = training(tmp_path / "c", engine=second)
    resume.load(again, tmp_path / "c")
    to_the_end(again)
    assert again.history["bound"] == pytest.approx(whole.history["bound"], rel=1e-5)


def test_double_precision_stays_double() -> None:
    torch.set_default_dtype(torch.float64)
    runs = [
        fit(
            Factor,
            FactorGuide,
            factor_data(70).double(),
            num_steps=20,
            engine=level,
            clip_norm=0.3,
            progress=False,
        )
        for level in ("eager", "captured")
    ]
    assert all(v.dtype == torch.float64 for v in runs[1].parameters().values())
    assert runs[1].history["bound"] == pytest.approx(runs[0].history["bound"], rel=1e-12)


class Counting(PyroModule):
    """A model with a Python number that changes at every step: it cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(0.0))
        self.t = 0

    def forward(self, x: Tensor) -> None:
        self.t += 1
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(self.m, 1.0 + 1.0 / self.t), obs=x)


def test_what_cannot_be_captured_runs_as_if_nobody_had_tried(
    capsys: pytest.CaptureFixture[str],
) -> None:
    x = torch.arange(5.0)
    wanted = fit(Counting(), nothing, x, num_steps=8, engine="eager", progress=False)
    run = fit(Counting(), nothing, x, num_steps=8)
    assert run.history == wanted.history
    assert run.results["engine"] == "eager"
    said = [line for line in capsys.readouterr().err.splitlines() if "Running eagerly" in line]
    assert len(said) == 1
    assert "Counting.t" in said[0] or "a number in" in said[0]
    with pytest.raises(ValueError, match="changes"):
        fit(Counting(), nothing, x, num_steps=8, engine="captured", progress=False)


def test_a_refusal_is_remembered(tmp_path: Path) -> None:
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
    resume.load(second, tmp_path / "c")
    assert second.step_runner.capture_error == first.step_runner.capture_error is not None


@pytest.mark.parametrize("rows", [70, 64])
@pytest.mark.parametrize("most", [1, 5, 7, 100])
def test_calls_end_where_something_happens(rows: int, most: int) -> None:
    order = EpochSampler(rows, 16, 0)
    calls, every, last = CallSchedule(order, most, 10, 53), 10, 53
    step, lengths = 0, []
    while step < last:
        count = calls(step)
        lengths.append(count)
        assert count <= most
        assert step // every == (step + count - 1) // every
        assert not any(order.is_smaller(step + i) for i in range(count)) or count == 1
        step += count
    assert step == last
    assert max(lengths) == 1 if most == 1 else max(lengths) > 1


def test_several_processes_take_one_step_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    run = training(engine="compiled", steps_per_call=4)
    assert run._calls(0) > 1
    monkeypatch.setattr("ppl_lvm.core.distributed.count", lambda: 2)
    assert training(engine="compiled", steps_per_call=4)._calls(0) == 1


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling seems to cost little: "auto" switches at step 10 or so."""
    costs = policy.CostModel(
        compile_seconds=0.01, compile_seconds_per_node=0.0, dispatch_seconds=1e-5
    )
    monkeypatch.setattr(policy, "COSTS", costs)


@pytest.mark.slow
@pytest.mark.usefixtures("soon")
def test_auto_compiles_in_the_background_and_two_runs_are_equal() -> None:
    eager = training(engine="eager", batch_size=35)
    to_the_end(eager)
    runs = []
    for _ in range(2):
        said: list[str] = []
        run = training(engine="auto", batch_size=35)
        run.run(Heard(said))
        runs.append(run)
        assert [line.split(",")[0] for line in said][:1] == ["Compiling the step in the background"]
        assert run.step_runner.level == "compiled"
    assert runs[0].history["bound"] == pytest.approx(eager.history["bound"], rel=1e-5)
    assert runs[0].history == runs[1].history
    states = [run.pair.state() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
@pytest.mark.usefixtures("soon")
def test_without_a_compiler_captured_serves_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    said: list[str] = []
    run = training(engine="auto", batch_size=35)
    run.run(Heard(said))
    assert run.step_runner.level == "captured"
    assert len([line for line in said if "captured, not compiled" in line]) == 1
    assert "compiler" in said[-1].lower()


class Heard(Progress):
    """Progress that keeps the lines it is given."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(STEPS, shown=False)
        self.said = said

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.mark.parametrize(("steps", "compiles"), [(20_000, False), (200_000, True)])
def test_auto_compiles_only_where_the_run_pays_for_it(steps: int, compiles: bool) -> None:
    run = training(engine="captured", batch_size=35)
    run.step()
    gradient = run.step_runner.training_step.gradient
    arguments, recording = gradient.lookup(run.train.batch(torch.arange(35)), {})
    assert recording is not None
    pays = policy.AheadOfTimePolicy(steps, 70, 35)
    switch = pays.switch(recording, arguments)
    assert (switch < steps) == compiles
    assert pays.compiles_ahead(recording, arguments) == compiles
    for pays.step in (0, switch - 1, switch):
        assert pays.compiles_now(recording, arguments) == (compiles and pays.step >= switch)
