"""Trial runs of model and guide without side effects."""

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.parameter_uses import ParameterUse, RecordParameters
from ppl_lvm.core.frames import is_program_module, is_users, line_of, traceback_frames
from ppl_lvm.programs.batch_versions import changed_arguments, versions
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.minibatch import num_rows
from ppl_lvm.programs.row_plates import row_plates
from ppl_lvm.programs.signatures import Signature, read_signature

Program = Callable[..., Any]
SourceLine = tuple[str, int]


@dataclass
class TrialRun:
    """One run of one program.

    Attributes:
        trace: its trace; None if it failed.
        signature: signature of the trace.
        places: site or parameter -> file and line of the user's program.
        concrete: lines that converted a tensor to a Python number.
        origin: first line of the program, for issues without a site.
        error: the exception that it raised.
        changed_arguments: places of arguments that it changed in place.
        uses: parameter -> its use.
    """

    trace: poutine.Trace | None = None
    signature: Signature | None = None
    places: dict[str, SourceLine] = field(default_factory=dict)
    concrete: list[SourceLine] = field(default_factory=list)
    origin: SourceLine | None = None
    error: Exception | None = None
    changed_arguments: list[int] = field(default_factory=list)
    uses: dict[str, ParameterUse] = field(default_factory=dict)

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Sample sites, without `pyro.deterministic` and the sites of plates."""
        assert self.trace is not None
        return {
            name: node
            for name, node in self.trace.nodes.items()
            if node["type"] == "sample"
            and not site_is_subsample(node)
            and not node["infer"].get("_deterministic")
        }

    def parameters(self) -> dict[str, Tensor]:
        """Parameter name -> the leaf that an optimizer changes."""
        assert self.trace is not None
        leaves = {}
        for name, node in self.trace.nodes.items():
            if node["type"] == "param":
                value = node["value"]
                unconstrained = getattr(value, "unconstrained", None)
                leaf = unconstrained() if unconstrained is not None else value
                leaves[name] = value if leaf is None else leaf
        return leaves

    def issue(
        self, code: str, severity: str, site: str | None, message: str, why: str, remedy: str
    ) -> Issue:
        """An issue at the place of its site."""
        file, line = self.places.get(site or "", self.origin or (None, None))
        return Issue(code, severity, site, message, why, remedy, file, line)


def run_program(
    program: Program, *batch: Any, seed: int = 0, values: poutine.Trace | None = None
) -> TrialRun:
    """Run `program` once, with the latents of the trace `values` if it contains them.

    Call it inside a `dry_run` scope, which holds its parameters.
    """
    trial = TrialRun(origin=_origin(program))
    pyro.set_rng_seed(seed)
    before = versions(batch)
    replayed = program if values is None else poutine.replay(program, values)
    try:
        with (
            pyro.validation_enabled(False),
            RecordParameters(trial.uses),
            _Locate(trial.places),
            _Concrete(trial.concrete),
        ):
            trial.trace = poutine.trace(replayed).get_trace(*batch)
        trial.signature = read_signature(trial.trace, row_plates(program, batch=batch))
    except Exception as error:  # every exception of a user's program is an issue
        trial.error = error
    trial.changed_arguments = changed_arguments(batch, before)
    return trial


def trial_trace(program: Program, *batch: Any) -> poutine.Trace | None:
    """Trace of a program alone; None if it does not run."""
    with dry_run(program):
        return run_program(program, *batch).trace


@dataclass
class TrialRuns:
    """Trial runs of a pair.

    Attributes:
        model: run of the model with the guide's draws.
        guide: run of the guide.
        batch: arguments of both.
        programs: model and guide.
        standalone: runs of model and guide, each in an empty parameter store.
        num_rows: N where the batch is a mini-batch.
    """

    model: TrialRun
    guide: TrialRun
    batch: tuple[Any, ...]
    programs: tuple[Program, Program]
    standalone: tuple[TrialRun, TrialRun]
    num_rows: int | None = None

    def by_role(self) -> Iterator[tuple[Program, TrialRun, str]]:
        """Program, run and role of model and guide."""
        yield self.programs[0], self.model, "model"
        yield self.programs[1], self.guide, "guide"


def run_trials(
    model: Program, guide: Program, *batch: Any, num_rows: int | None = None
) -> TrialRuns:
    """Run the guide, then the model with its draws; and each in an empty parameter store."""
    with dry_run(model, guide):
        pyro.get_param_store().clear()
        model_alone = run_program(model, *batch)
    with dry_run(model, guide):
        pyro.get_param_store().clear()
        guide_alone = run_program(guide, *batch)
    with dry_run(model, guide):
        guide_trial = run_program(guide, *batch)
        draws = guide_trial.trace if guide_trial.error is None else None
        model_trial = run_program(model, *batch, values=draws)
    only_together = model_alone.error is None and guide_trial.error is None
    if model_trial.error is not None and only_together and _shapes_differ(model_alone, guide_trial):
        model_trial = model_alone  # shapes of the guide are the fault
    standalone = (model_alone, guide_alone)
    return TrialRuns(model_trial, guide_trial, batch, (model, guide), standalone, num_rows)


def _origin(program: Any) -> SourceLine | None:
    """First line of a function, or of the `forward` of a module's class."""
    function = inspect.unwrap(
        getattr(type(program), "forward", getattr(program, "__func__", program))
    )
    code = getattr(function, "__code__", None)
    if code is None or not is_program_module(function.__module__):
        return None
    return code.co_filename, code.co_firstlineno


def place_of(error: Exception) -> SourceLine | None:
    """The last line of the user's program that an exception passed through."""
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback_frames(error)
        if is_users(frame)
    ]
    return frames[-1] if frames else None


def map_rows(batch: tuple[Any, ...], change: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    """The batch with every tensor of its rows changed."""
    B = num_rows(batch)
    return tuple(
        change(part) if isinstance(part, Tensor) and part.dim() and len(part) == B else part
        for part in batch
    )


def _shapes_differ(model: TrialRun, guide: TrialRun) -> bool:
    draws = guide.nodes()
    return any(
        name in draws and node["value"].shape != draws[name]["value"].shape
        for name, node in model.nodes().items()
    )


def _users_place(depth: int = 2) -> SourceLine | None:
    """The innermost running line of the user's program."""
    frame = sys._getframe(depth)
    while frame is not None:
        if is_users(frame):
            return line_of(frame)
        frame = frame.f_back  # type: ignore[assignment]
    return None


class _Locate(Messenger):
    """Records the place of every site and parameter."""

    def __init__(self, places: dict[str, SourceLine]) -> None:
        super().__init__()
        self._places = places

    def _pyro_sample(self, msg: Any) -> None:
        place = _users_place()
        if place is not None:
            self._places.setdefault(msg["name"], place)

    _pyro_param = _pyro_sample


class _Concrete(TorchFunctionMode):
    """Records lines of the user's program that convert a tensor to a Python number."""

    _NAMES = ("item", "__bool__", "__float__", "__int__", "__index__", "tolist")

    def __init__(self, places: list[SourceLine]) -> None:
        super().__init__()
        self._places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._NAMES:
            caller = sys._getframe(1)
            if is_users(caller):
                self._places.append(line_of(caller))
        return func(*args, **(kwargs or {}))
