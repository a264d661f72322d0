"""Looks at a pair: several runs of model and guide, that leave no trace of having been made."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppl_lvm.checks.issues import Issue
from ppl_lvm.core.frames import is_program_module, is_users, line_of, traceback_frames
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.signatures import Signature, read_signature

Program = Callable[..., Any]
SourceLine = tuple[str, int]


@dataclass
class TrialRun:
    """One run of one program.

    Attributes:
        trace: what it declared; None if it failed.
        signature: the same, read.
        places: site or parameter -> file and line of the user's program.
        concrete: lines that turned a tensor into a Python number.
        origin: where the program begins, for what no site can be blamed for.
        error: the exception that stopped it.
    """

    trace: poutine.Trace | None = None
    signature: Signature | None = None
    places: dict[str, SourceLine] = field(default_factory=dict)
    concrete: list[SourceLine] = field(default_factory=list)
    origin: SourceLine | None = None
    error: Exception | None = None

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Sample sites, without `pyro.deterministic` and the plates' own."""
        assert self.trace is not None
        return {
            name: node
            for name, node in self.trace.nodes.items()
            if node["type"] == "sample"
            and not site_is_subsample(node)
            and not node["infer"].get("_deterministic")
        }

    def parameters(self) -> dict[str, Tensor]:
        """Parameter name -> the leaf that an optimiser would move."""
        assert self.trace is not None
        found = {}
        for name, node in self.trace.nodes.items():
            if node["type"] == "param":
                value = node["value"]
                unconstrained = getattr(value, "unconstrained", None)
                leaf = unconstrained() if unconstrained is not None else value
                found[name] = value if leaf is None else leaf
        return found

    def finding(
        self, code: str, severity: str, site: str | None, message: str, why: str, remedy: str
    ) -> Issue:
        """A finding that knows where its site stands."""
        file, line = self.places.get(site or "", self.origin or (None, None))
        return Issue(code, severity, site, message, why, remedy, file, line)


def run(
    program: Program, *batch: Any, seed: int = 0, values: poutine.Trace | None = None
) -> TrialRun:
    """Run `program` once, its latents replayed from `values` where that has them.

    Call it inside a `dry_run` scope, in which its parameters are to live.
    """
    found = TrialRun(origin=_origin(program))
    pyro.set_rng_seed(seed)
    replayed = program if values is None else poutine.replay(program, values)
    try:
        with pyro.validation_enabled(False), _Locate(found.places), _Concrete(found.concrete):
            found.trace = poutine.trace(replayed).get_trace(*batch)
        found.signature = read_signature(found.trace)
    except Exception as error:  # whatever a user's program raises is a finding
        found.error = error
    return found


@dataclass
class TrialRuns:
    """A guide's run and the model's run on the guide's values, with what the other runs told."""

    model: TrialRun
    guide: TrialRun
    batch: tuple[Any, ...]
    programs: tuple[Program, Program]
    standalone: tuple[TrialRun, TrialRun]


def run_trials(model: Program, guide: Program, *batch: Any) -> TrialRuns:
    """Run the guide, then the model on what it drew; and each in a store of its own."""
    with dry_run(model, guide):
        pyro.get_param_store().clear()
        alone_model = run(model, *batch)
    with dry_run(model, guide):
        pyro.get_param_store().clear()
        alone_guide = run(guide, *batch)
    with dry_run(model, guide):
        drawn = run(guide, *batch)
        replayed = run(model, *batch, values=_latents(drawn))
    if replayed.error is not None and alone_model.error is None and drawn.error is None:
        replayed = alone_model if _shapes_differ(alone_model, drawn) else replayed
    return TrialRuns(replayed, drawn, batch, (model, guide), (alone_model, alone_guide))


def _origin(program: Any) -> SourceLine | None:
    """The line that a function, or the `forward` of a module's class, begins at."""
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


def rows(batch: tuple[Any, ...]) -> int | None:
    """B, the rows of the first tensor."""
    for part in batch:
        if isinstance(part, Tensor) and part.dim() > 0:
            return len(part)
    return None


def _latents(drawn: TrialRun) -> poutine.Trace | None:
    return drawn.trace if drawn.error is None else None


def _shapes_differ(model: TrialRun, guide: TrialRun) -> bool:
    drawn = guide.nodes()
    return any(
        name in drawn and node["value"].shape != drawn[name]["value"].shape
        for name, node in model.nodes().items()
    )


def _users_place(depth: int = 2) -> SourceLine | None:
    """The innermost line of the user's program that is running now."""
    frame = sys._getframe(depth)
    while frame is not None:
        if is_users(frame):
            return line_of(frame)
        frame = frame.f_back  # type: ignore[assignment]
    return None


class _Locate(Messenger):
    """Notes where every site and parameter stands."""

    def __init__(self, places: dict[str, SourceLine]) -> None:
        super().__init__()
        self._places = places

    def _pyro_sample(self, msg: Any) -> None:
        place = _users_place()
        if place is not None:
            self._places.setdefault(msg["name"], place)

    _pyro_param = _pyro_sample


class _Concrete(TorchFunctionMode):
    """Notes where the user's own line turns a tensor into a number or a truth value."""

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
