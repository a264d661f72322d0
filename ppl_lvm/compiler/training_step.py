"""One whole step: loss, gradient, update, at the highest level that serves.

`captured` replays the recording and then updates on flat vectors; `compiled` does both in one
compiled function. When a recording is compiled is the caller's `Plan`: by default once replaying it
has cost what compiling will.
"""

import math
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_lvm.compiler.backend.allocator import keep_freed_memory
from ppl_lvm.compiler.backend.compiled_step import Clip, CompiledStep
from ppl_lvm.compiler.backend.inductor import CompileWorker, start_isa_probe
from ppl_lvm.compiler.backend.multi_step import PerStepTensor, StepSnapshot, take_steps
from ppl_lvm.compiler.backend.threads import single_thread_if
from ppl_lvm.compiler.capture.arguments import Arguments
from ppl_lvm.compiler.capture.captured_gradient import CapturedGradient
from ppl_lvm.compiler.capture.state_snapshot import PythonStateSnapshot
from ppl_lvm.compiler.errors import CannotCaptureError
from ppl_lvm.compiler.graph.build import Recording
from ppl_lvm.compiler.optim.adapters import OptimizerAdapter, clipped
from ppl_lvm.compiler.optim.flat import FlatGroup, FlatOptimizer
from ppl_lvm.compiler.passes.row_tiling import Block, TiledStep, tile_rows
from ppl_lvm.compiler.policy import BreakEvenPolicy, CompilePolicy, cost

Level = Literal["auto", "eager", "captured", "compiled"]
LEVELS = ("auto", "eager", "captured", "compiled")


class NonFiniteStepError(ArithmeticError):
    """A step's result is NaN or infinite; the step has not been taken."""


class TrainingStep:
    """`(*batch) -> loss`, with the parameters updated.

    Args:
        gradient: gives the loss and leaves gradients in `.grad`.
        stepper: the optimiser.
        level: "eager", "captured", "compiled" or "auto".
        announce: receives one-line messages.
        parameters: lists, after an eager step, those that took part.
        same_random: whether a compiled step draws the eager step's random numbers.
        finite: refuse a step whose results are not all finite, see `NonFiniteStepError`: parameters
            and the optimiser's state stay.
        capture_first: learn each kind of arguments on steps that change nothing, so that each step
            is taken at one level from the first.
        plan: when "auto" compiles.
        block: `(rows, *block)`: the program on a block that stands for so many rows, for batches
            to be taken in blocks (`blocks`); None where losses are no sums over rows.
    """

    def __init__(
        self,
        gradient: CapturedGradient,
        stepper: OptimizerAdapter,
        level: Level,
        announce: Callable[[str], None],
        parameters: Callable[[], Sequence[Tensor]],
        *,
        same_random: bool = True,
        finite: bool = False,
        capture_first: bool = False,
        plan: CompilePolicy | None = None,
        block: Block | None = None,
    ) -> None:
        self.gradient, self.stepper, self.level = gradient, stepper, level
        self._announce, self._same_random = announce, same_random
        self._parameters, self._finite = parameters, finite
        self._block = block
        self._rehearses = capture_first and level != "eager"
        self._rehearsed: set[Hashable] = set()
        self._plan: CompilePolicy = plan or BreakEvenPolicy()
        self._flat = FlatOptimizer()
        self._compiled: dict[Hashable, CompiledStep | TiledStep] = {}
        self._workshop = CompileWorker()
        self._compiles = level in ("auto", "compiled")
        if level != "eager":
            keep_freed_memory()
        if level == "compiled":
            start_isa_probe()  # while the first steps are recorded

    @property
    def active_level(self) -> str:
        """The level of the steps that are being taken."""
        if self._compiled:
            return "compiled"
        return "captured" if self.gradient.num_captures else "eager"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Take one step; what `loss_and_grads` returns.

        Raises:
            NonFiniteStepError: see `finite`.
            CannotCaptureError: where "captured" or "compiled" cannot be had.
        """
        if self._rehearses:
            self._rehearse(args, kwargs)
        with single_thread_if(self.gradient.small):
            return self._take(args, kwargs)

    def _take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        step = self._compiled_step(args, kwargs)
        if step is not None:
            compiled, arguments = step
            losses = compiled(arguments.tensors)
            if self._finite and not finite(losses):
                compiled.undo_count()
                raise NonFiniteStepError("a result of the step is not finite")
            return losses
        begun = time.perf_counter()
        losses = (
            self.gradient.eager(args, kwargs)
            if self.level == "eager"
            else self.gradient(*args, **kwargs)
        )
        if self._finite and not finite(losses):
            raise NonFiniteStepError("a result of the step is not finite")
        self._update([p for p in self._parameters() if p.grad is not None])
        if self.gradient.num_captures:
            self._plan.captured(time.perf_counter() - begun)
        return losses

    def run_steps(
        self,
        data: list[Tensor],
        rows: Tensor | None,
        count: int,
        *,
        turns: Sequence[PerStepTensor] = (),
        after_each: Callable[[], None] | None = None,
    ) -> Any:
        """`count` steps in one call: on `data[...][rows[s]]` for each s, or all on all of `data`.

        Args:
            data: tensors, rows first.
            rows: (count, B) or None.
            turns: tensors that the program reads, with their value at each step.
            after_each: called after the numbers of each step have been taken (a schedule's step).

        Returns:
            The losses, each (count,); None if these steps cannot be had in one call now.

        Raises:
            NonFiniteStepError: see `finite`. None of the steps has been taken; what `after_each`
            has done
                is for the caller to take back.
        """
        batch = tuple(data if rows is None else [tensor[rows[0]] for tensor in data])
        if self._rehearses:
            self._rehearse(batch, {})
        with single_thread_if(self.gradient.small):
            found = self._compiled_step(batch, {})
            if found is None:
                return None
            step, _ = found
            before = StepSnapshot(step, turns) if self._finite else None
            losses = take_steps(step, data, rows, count, turns, after_each)
            if before is not None and not finite(losses):
                before.restore(count)
                raise NonFiniteStepError("a result of one of the steps is not finite")
            return losses

    # Learning

    def record(self, *args: Any) -> Recording:
        """The recording for these arguments, made on steps that change nothing if it is new.

        Raises:
            CannotCaptureError: there is none.
        """
        self.gradient.dry_run_capture(args, {}, PythonStateSnapshot(self.gradient.watched))
        recording = self.gradient.lookup(args, {})[1]
        if recording is None:
            raise self.gradient.capture_error or CannotCaptureError("too many kinds of arguments")
        return recording

    def _rehearse(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record these arguments, if they are new, on steps that change nothing."""
        gradient = self.gradient
        if gradient.capture_error is not None:
            return
        try:
            arguments, recording = gradient.lookup(args, kwargs)
        except CannotCaptureError:
            return  # the step itself will say so
        key = gradient.key(arguments)
        if key in self._rehearsed:
            return
        self._rehearsed.add(key)
        if recording is None:
            self._lay_out()
            gradient.dry_run_capture(args, kwargs, PythonStateSnapshot(gradient.watched))
            arguments, recording = gradient.lookup(args, kwargs)
        if recording is not None and self._compiles and self.level == "auto":
            self._prepare(arguments, recording)

    def _lay_out(self) -> None:
        """Move parameters into flat vectors already, so that a resumed run has them there too."""
        known = [p for p in self.gradient.parameters or self._parameters() if p.requires_grad]
        owned = self.stepper.parameter_slots(known)
        if owned is not None and not self._flat.laid_out:
            with_state = [entry for entry in owned if entry[1].state.get(entry[0])]
            self._flat.plan(with_state or owned)

    def _prepare(self, arguments: Arguments, recording: Recording) -> None:
        """Have another process compile the step, if the plan says so."""
        if not self._plan.ahead(recording, arguments):
            return
        step = self._trace(arguments, recording)
        if step is not None:
            self._announce(
                f"Compiling the step in the background, about {cost(recording):.0f} s; captured "
                "steps go on."
            )
            with single_thread_if(self.gradient.small):
                inputs = step.inputs(arguments.tensors)
                self._workshop.start(step.graph, inputs, self._same_random)

    # Compiled steps

    def _compiled_step(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[CompiledStep | TiledStep, Arguments] | None:
        if not self._compiles or not self.gradient.num_captures:
            return None
        try:
            arguments, recording = self.gradient.lookup(args, kwargs)
        except CannotCaptureError:
            return None  # the gradient will say so
        if recording is None or not self._now(recording, arguments):
            return None
        step = self._find(arguments, recording)
        if step is None or not self._finish(step, arguments):
            return None
        return step, arguments

    def _now(self, recording: Recording, arguments: Arguments) -> bool:
        if not self._compiles:
            return False
        return self.level == "compiled" or self._plan.now(recording, arguments)

    def _find(self, arguments: Arguments, recording: Recording) -> CompiledStep | TiledStep | None:
        """The compiled step for these arguments; it may still have to be compiled."""
        active = recording.trained(self.gradient.parameters)
        owned = self.stepper.parameter_slots(active)
        groups = None if owned is None else self._flat.plan(owned)
        if groups is None:
            if owned is not None:
                self._stop("the optimiser has no flat rule; captured steps go on with it")
            return None
        step = self._compiled.get(self.gradient.key(arguments))
        if step is not None and step.recording is recording and step.groups is groups:
            return step
        return self._trace(arguments, recording, groups)

    def _trace(
        self,
        arguments: Arguments,
        recording: Recording,
        groups: list[FlatGroup] | None = None,
    ) -> CompiledStep | TiledStep | None:
        if groups is None:
            owned = self.stepper.parameter_slots(recording.trained(self.gradient.parameters))
            groups = None if owned is None else self._flat.plan(owned)
        if groups is None:
            return None
        clip = clipped(self.stepper) if self.stepper.clips() else None
        parameters = self.gradient.parameters
        try:
            step = self._in_blocks(arguments, recording, groups, clip) or CompiledStep(
                recording, parameters, groups, arguments.tensors, clip, self._finite
            )
        except Exception as error:
            self._stop(f"{type(error).__name__}: {_first_line(error)}", error)
            return None
        self._compiled[self.gradient.key(arguments)] = step
        return step

    def _in_blocks(
        self,
        arguments: Arguments,
        recording: Recording,
        groups: list[FlatGroup],
        clip: Clip | None,
    ) -> TiledStep | None:
        if self._block is None:
            return None
        return tile_rows(
            self._block, self.gradient, arguments, recording, groups, clip, self._finite
        )

    def _finish(self, step: CompiledStep | TiledStep, arguments: Arguments) -> bool:
        if step.ready:
            return True
        if self._workshop.used:
            failure = self._workshop.wait(self._announce)
            if failure is not None:
                self._stop(failure)
                return False
        else:
            self._announce(
                f"Compiling the step, about {cost(step.recording):.0f} s once; steps go on "
                "after it."
            )
        try:
            step.compile(arguments.tensors, self._same_random)
        except Exception as error:
            self._stop(f"{type(error).__name__}: {_first_line(error)}", error)
            return False
        return True

    def _stop(self, reason: str, error: Exception | None = None) -> None:
        if self.level == "compiled":
            raise CannotCaptureError(f"the step cannot be compiled: {reason}") from error
        self._compiles = False
        self._compiled.clear()
        self._announce(f"Running captured, not compiled: {reason}")

    # The update

    def _update(self, parameters: list[Tensor]) -> None:
        """Step the optimiser from the parameters' gradients, and clear them."""
        owned = None if self.level == "eager" else self.stepper.parameter_slots(parameters)
        if owned is None or self._flat.plan(owned) is None:
            self.stepper.step(parameters)
        else:
            if self.stepper.clips():
                for p in parameters:
                    self.stepper.clip(p)
            self._flat.step(owned)
        for p in parameters:
            p.grad = None


def finite(losses: Any) -> bool:
    """Whether every number of a result is finite."""
    return all(
        bool(value.isfinite().all()) if isinstance(value, Tensor) else math.isfinite(value)
        for value in pytree.tree_leaves(losses)
        if isinstance(value, Tensor | float | int)
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
