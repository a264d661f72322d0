"""fit at every level of the engine: the same steps, the same safety, the same run when resumed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Normal, Poisson
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_lvm.checkpoint import load_checkpoint
from ppl_lvm.data import load_data
from ppl_lvm.engine import plan
from ppl_lvm.fit import fit
from ppl_lvm.pair import Pair
from ppl_lvm.progress import Progress
from ppl_lvm.training import resume
from ppl_lvm.training.in_support import InSupport
from ppl_lvm.training.loop import Training
from ppl_lvm.training.nonfinite import NonFiniteError
from ppl_lvm.training.rows import Calls, RowOrder
from ppl_lvm.training.stepping import Options

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


class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 1)
        self.spread = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(self.encoder(x), self.spread).to_event(1))


def data(n: int = 70) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(n, 1, generator=generator)
    return z * torch.tensor([2.0, -1.0, 0.5]) + torch.randn(n, 3, generator=generator)


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
    options = Options(**{"num_steps": STEPS, **ASKED, **asked})
    x = load_data(data())
    pair = Pair(Factor(), Guide(), Trace_ELBO())
    pair.prepare(*x.batch(torch.arange(options.batch_size)))
    return Training(pair, x, load_data(data(20)), options, path=path)


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
    assert other.stepping.level == level
    for name, values in eager.history.items():
        assert other.history[name] == pytest.approx(values, rel=1e-5), name
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("optimizer", ["Adam(lr=0.01)", "SGD(lr=0.01)"])
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


class Exploding(PyroModule):
    """x_n ~ N(log m, 1): not a number once m has fallen below 0."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(torch.log(self.m), 1.0), obs=x)


def nothing(x: Tensor) -> None:
    """A guide without sites."""


def fails(program: Any, x: Tensor, path: Path, **asked: Any) -> tuple[str, dict[str, Any], int]:
    with pytest.raises(NonFiniteError) as raised:
        fit(program, nothing, x, directory=path, progress=False, **asked)
    tensors, kept = load_checkpoint(path / "checkpoint.safetensors")
    return str(raised.value), tensors, kept["step"]


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("per_call", [1, 5])
def test_a_nan_is_named_and_the_last_good_state_kept(
    level: Any, per_call: int, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"optimizer": "SGD(lr=0.1)", "num_steps": 50}
    asked["schedule"] = "ExponentialLR(gamma=0.99)"
    x = torch.full((5,), -5.0)
    message, tensors, step = fails(Exploding(), x, tmp_path / "a", engine="eager", **asked)
    assert "site 'x' of the model has a loc that is NaN" in message
    assert step % 5  # within a call
    asked |= {"engine": level, "steps_per_call": per_call}
    same, found, reached = fails(Exploding(), x, tmp_path / "b", **asked)
    assert (same.replace("/b/", "/a/"), reached) == (message, step)
    for name in ("state/model/m", "history/bound"):
        assert torch.allclose(found[name], tensors[name], rtol=1e-5), name


@pytest.mark.parametrize("level", LEVELS[1:])
def test_a_nan_gradient_names_the_parameter(level: Any, tmp_path: Path) -> None:
    class Root(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor(0.005))  # sinks below zero in the first step
            self.fine = nn.Parameter(torch.tensor(0.0))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                root = (self.a * (self.a > 0)).sqrt()
                pyro.sample("x", Normal(self.fine + root, 1.0), obs=x)

    message, tensors, step = fails(
        Root(), -torch.ones(5), tmp_path, num_steps=3, engine=level, clip_norm=1.0
    )
    assert "gradient of parameter 'a' is NaN" in message
    assert step == 1
    assert float(tensors["state/model/fine"]) == pytest.approx(-0.01, rel=1e-3)


class Counts(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.rate = PyroParam(torch.tensor([1.0, 2.0]), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Poisson(self.rate).to_event(1), obs=x)


def test_a_value_that_has_no_probability_is_found_where_the_program_does_not_run(
    tmp_path: Path,
) -> None:
    """A Poisson gives 0.5 a finite number: only the support tells."""
    x = torch.ones(40, 2)
    x[17, 1] = 0.5
    message, _, step = fails(
        Counts(), x, tmp_path, batch_size=8, num_steps=20, engine="captured", seed=1
    )
    assert "outside the support of Poisson" in message
    assert "row 18 (index 17)" in message
    assert step > 0


def asked(model: Any, *batch: Tensor) -> bool | None:
    look = InSupport()
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
            grey = Bernoulli(logits=torch.zeros(2), validate_args=check).to_event(1)
            pyro.sample("x", grey, obs=x)

    x = torch.tensor([[0.0, 1.0], [0.5, 1.0]])
    assert asked(model, x[:1]) is True
    assert asked(model, x) is False
    assert asked(lambda x: model(x, mask=torch.tensor([True, False])), x) is True
    assert asked(lambda x: model(x, check=False), x) is None


def test_double_precision_stays_double() -> None:
    torch.set_default_dtype(torch.float64)
    runs = [
        fit(
            Factor,
            Guide,
            data().double(),
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
        pair = Pair(Counting(), nothing, Trace_ELBO())
        pair.prepare(*x.tensors)
        return Training(pair, x, None, Options(num_steps=9, batch_size=5), path=tmp_path / "c")

    first = make()
    first.step()
    first.save()
    second = make()
    resume.load(second, tmp_path / "c")
    assert second.stepping.refusal == first.stepping.refusal is not None


@pytest.mark.parametrize("rows", [70, 64])
@pytest.mark.parametrize("most", [1, 5, 7, 100])
def test_calls_end_where_something_happens(rows: int, most: int) -> None:
    order = RowOrder(rows, 16, 0)
    calls, every, last = Calls(order, most, 10, 53), 10, 53
    step, lengths = 0, []
    while step < last:
        count = calls(step)
        lengths.append(count)
        assert count <= most
        assert step // every == (step + count - 1) // every
        assert not any(order.ragged(step + i) for i in range(count)) or count == 1
        step += count
    assert step == last
    assert max(lengths) == 1 if most == 1 else max(lengths) > 1


def test_several_processes_take_one_step_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    run = training(engine="compiled", steps_per_call=4)
    assert run._calls(0) > 1
    monkeypatch.setattr("ppl_lvm.processes.count", lambda: 2)
    assert training(engine="compiled", steps_per_call=4)._calls(0) == 1


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling seems to cost little: "auto" switches at step 10 or so."""
    monkeypatch.setattr(plan, "_COST", (0.01, 0.0))
    monkeypatch.setattr(plan, "_DISPATCH", 1e-5)


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
        assert run.stepping.level == "compiled"
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
    assert run.stepping.level == "captured"
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
    gradient = run.stepping.whole.gradient
    arguments, recording = gradient.lookup(run.train.batch(torch.arange(35)), {})
    assert recording is not None
    pays = plan.LongRun(steps, 70, 35)
    switch = pays.switch(recording, arguments)
    assert (switch < steps) == compiles
    assert pays.ahead(recording, arguments) == compiles
    for pays.step in (0, switch - 1, switch):
        assert pays.now(recording, arguments) == (compiles and pays.step >= switch)
