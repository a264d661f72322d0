"""Training steps at the highest level possible.

"captured" replays the recording and then updates on flat vectors; "compiled" does both in one
compiled function. A `CompilePolicy` decides when a recording is compiled.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.compiler.backend.allocator import keep_freed_memory
from ppl_lvm.compiler.backend.compiled_step import CompiledStep
from ppl_lvm.compiler.backend.executable_step import ExecutableStep, Pauses, PerStepTensor
from ppl_lvm.compiler.backend.inductor import start_isa_probe
from ppl_lvm.compiler.backend.multi_step import StepSnapshot, take_steps
from ppl_lvm.compiler.backend.numerics import all_finite
from ppl_lvm.compiler.backend.threads import single_thread_if
from ppl_lvm.compiler.backend.worker import CompileWorker
from ppl_lvm.compiler.capture.arguments import Arguments
from ppl_lvm.compiler.capture.captured_gradient import CapturedGradient
from ppl_lvm.compiler.capture.gradient_hooks import has_hooks
from ppl_lvm.compiler.capture.state_snapshot import PythonStateSnapshot
from ppl_lvm.compiler.compile_times import announced, timed
from ppl_lvm.compiler.graph.ir import Recording
from ppl_lvm.compiler.optim.adapters import OptimizerAdapter, functional_clip
from ppl_lvm.compiler.optim.flat import FlatGroup, FlatOptimizer
from ppl_lvm.compiler.optim.update_rules import supported_optimizers
from ppl_lvm.compiler.passes import PassError
from ppl_lvm.compiler.policy import COSTS, BreakEvenPolicy, CompilePolicy
from ppl_lvm.compiler.row_tiling import RowBlocks, tile_rows
from ppl_lvm.core.errors import CannotCaptureError, NonFiniteError, is_numerical
from ppl_lvm.core.levels import Level


class TrainingStep:
    """`(*batch) -> loss`, with the parameters updated.

    Args:
        gradient: returns the loss and leaves gradients in `.grad`.
        optimizer: of the parameters.
        level: see `make_training_step`.
        announce: receives one-line messages.
        parameters: lists, after an eager step, the parameters that took part.
        same_random: whether a compiled step draws the eager step's random numbers.
        finite: reject a step whose results are not all finite with `NonFiniteError`; parameters
            and optimizer state stay.
        capture_first: record each kind of arguments on trial steps that change nothing, so that
            every step is taken at one level from the first.
        plan: when "auto" compiles; `BreakEvenPolicy` by default.
        blocks: the program on blocks of rows, to take large batches in tiles (`row_tiling`); None
            where the loss is no sum over rows.
    """

    def __init__(
        self,
        gradient: CapturedGradient,
        optimizer: OptimizerAdapter,
        level: Level,
        announce: Callable[[str], None],
        parameters: Callable[[], Sequence[Tensor]],
        *,
        same_random: bool = True,
        finite: bool = False,
        capture_first: bool = False,
        plan: CompilePolicy | None = None,
        blocks: RowBlocks | None = None,
    ) -> None:
        self.gradient, self.optimizer, self.level = gradient, optimizer, level
        self._announce, self._same_random = announce, same_random
        self._parameters, self._finite = parameters, finite
        self._blocks = blocks
        self._captures_first = capture_first and level != "eager"
        self._tried: set[Hashable] = set()  # kinds of arguments, on trial steps
        self._plan: CompilePolicy = plan or BreakEvenPolicy()
        self._flat = FlatOptimizer()
        self._compiled: dict[Hashable, ExecutableStep] = {}
        self._worker = CompileWorker()
        self._compiles = level in ("auto", "compiled")
        if level != "eager":
            keep_freed_memory()
        if level == "compiled":
            start_isa_probe()  # while the first steps are recorded

    @property
    def active_level(self) -> str:
        """The level of the steps that are taken now."""
        captured = "captured" if self.gradient.num_captures else "eager"
        return "compiled" if self._compiled else captured

    @property
    def compiled_steps(self) -> list[ExecutableStep]:
        """The steps of all kinds of arguments that are compiled."""
        return list(self._compiled.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Take one step, under `torch.no_grad` none; return the result of `loss_and_grads`.

        Raises:
            NonFiniteError: see `finite`.
            CannotCaptureError: at the levels "captured" and "compiled".
        """
        if not torch.is_grad_enabled():
            return self.gradient(*args, **kwargs)
        self._capture_on_trial(args, kwargs)
        with single_thread_if(self.gradient.small):
            return self._take(args, kwargs)

    def _take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        step = self._compiled_step(args, kwargs)
        if step is not None:
            compiled, arguments = step
            losses = compiled(arguments.tensors)
            if self._finite and not all_finite(losses):
                compiled.undo_count()
                raise NonFiniteError("a result of the step is not finite")
            return losses
        begin = time.perf_counter()
        if self.level == "eager":
            losses = self.gradient.eager(args, kwargs)
        else:
            losses = self.gradient(*args, **kwargs)
        if self._finite and not all_finite(losses):
            raise NonFiniteError("a result of the step is not finite")
        self._update([p for p in self._parameters() if p.grad is not None])
        if self.gradient.num_captures:
            self._plan.count_seconds(time.perf_counter() - begin)
        return losses

    def run_steps(
        self,
        data: list[Tensor],
        rows: Tensor | None,
        count: int,
        *,
        schedules: Sequence[PerStepTensor] = (),
        after_each: Callable[[], None] | None = None,
        pauses: Pauses | None = None,
    ) -> Any:
        """Take `count` steps in one call: on `data[...][rows[s]]` for each s, or on all of `data`.

        Args:
            data: tensors, rows first.
            rows: (count, B) or None.
            schedules: tensors that the program reads, with their value at each step.
            after_each: a schedule's step, called once a step's optimizer scalars have been read.
            pauses: between steps; undone steps have had theirs.

        Returns:
            The losses, each (count,); None if these steps are not compiled now.

        Raises:
            NonFiniteError: see `finite`. No step has been taken; the caller undoes the effects of
                `after_each`.
        """
        batch = tuple(data if rows is None else [tensor[rows[0]] for tensor in data])
        self._capture_on_trial(batch, {})
        with single_thread_if(self.gradient.small):
            compiled = self._compiled_step(batch, {})
            if compiled is None:
                return None
            step = compiled[0]
            before = StepSnapshot(step, schedules) if self._finite else None
            try:
                losses = take_steps(step, data, rows, count, schedules, after_each, pauses)
                failed = self._finite and not all_finite(losses)
            except RuntimeError as error:
                if before is None or not is_numerical(error):
                    raise
                failed = True
            if before is not None and failed:
                before.restore()
                raise NonFiniteError("a result of one of the steps is not finite")
            return losses

    # Capture

    def record(self, *args: Any) -> Recording:
        """The recording for these arguments, made on trial steps if it is new.

        Raises:
            CannotCaptureError: the program cannot be captured.
        """
        self.gradient.dry_run_capture(args, {}, PythonStateSnapshot(self.gradient.watched))
        recording = self.gradient.lookup(args, {})[1]
        if recording is None:
            raise self.gradient.capture_error or CannotCaptureError("too many kinds of arguments")
        return recording

    def _capture_on_trial(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record these arguments, if they are new, on trial steps."""
        gradient = self.gradient
        if not self._captures_first or gradient.capture_error or not torch.is_grad_enabled():
            return
        if any(map(has_hooks, self._parameters())):
            return  # a trial would run the hooks
        try:
            arguments, recording = gradient.lookup(args, kwargs)
        except CannotCaptureError:
            return  # the step itself reports it
        key = arguments.kind
        if key in self._tried:
            return
        self._tried.add(key)
        if recording is None:
            self._lay_out()
            gradient.dry_run_capture(args, kwargs, PythonStateSnapshot(gradient.watched))
            arguments, recording = gradient.lookup(args, kwargs)
        if recording is not None and self._compiles and self.level == "auto":
            self._compile_ahead(arguments, recording)

    def _lay_out(self) -> None:
        """Move parameters into flat vectors before the first step, as in a resumed run."""
        parameters = self.gradient.parameters or self._parameters()
        slots = self.optimizer.parameter_slots([p for p in parameters if p.requires_grad])
        if slots is not None and not self._flat.laid_out:
            with_state = [slot for slot in slots if slot[1].state.get(slot[0])]
            self._flat.plan(with_state or slots)

    # Compiled steps

    def _compile_ahead(self, arguments: Arguments, recording: Recording) -> None:
        """Start to compile the step in another process, if the policy requires it."""
        if not self._plan.compiles_ahead(recording, arguments):
            return
        groups = self._groups(recording)
        step = None if groups is None else self._make_step(arguments, recording, groups)
        if step is not None:
            self._compile_in_background(step, arguments)

    def _compile_in_background(self, step: ExecutableStep, arguments: Arguments) -> None:
        expected = COSTS.compiling(step.recording)
        self._announce(
            f"Compiling the step in the background, {announced(expected)}; captured steps go on."
        )
        with single_thread_if(self.gradient.small):
            inputs = step.inputs(arguments.tensors)
            self._worker.start(step.graph, inputs, self._same_random, step, expected)

    def _compiled_step(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[ExecutableStep, Arguments] | None:
        if not self._compiles or not self.gradient.num_captures or not torch.is_grad_enabled():
            return None
        try:
            arguments, recording = self.gradient.lookup(args, kwargs)
        except CannotCaptureError:
            return None  # the gradient reports it
        if recording is None:
            return None
        if self.level != "compiled" and not self._plan.compiles_now(recording, arguments):
            return None
        step = self._find(arguments, recording)
        if step is None or not self._finish(step, arguments):
            return None
        return step, arguments

    def _groups(self, recording: Recording) -> list[FlatGroup] | None:
        """The flat vectors that the step updates; None without an optimizer or a rule for it."""
        slots = self.optimizer.parameter_slots(recording.trained(self.gradient.parameters))
        return None if slots is None else self._flat.plan(slots)

    def _find(self, arguments: Arguments, recording: Recording) -> ExecutableStep | None:
        """The compiled step for these arguments; it may still have to be compiled."""
        slots = self.optimizer.parameter_slots(recording.trained(self.gradient.parameters))
        if slots is None:
            return None
        if recording.hooked:
            self._stop("gradient hooks of parameters run after each captured step")
            return None
        groups = self._flat.plan(slots)
        if groups is None:
            self._stop(
                "the optimizer has no flat rule; captured steps go on with it. Compiled steps "
                f"support {supported_optimizers()} with the usual options"
            )
            return None
        step = self._compiled.get(arguments.kind)
        if step is not None and step.recording is recording and step.groups is groups:
            return step
        return self._make_step(arguments, recording, groups)

    def _make_step(
        self, arguments: Arguments, recording: Recording, groups: list[FlatGroup]
    ) -> ExecutableStep | None:
        """The step, tiled where that pays; None if an operation has no rule."""
        clip = functional_clip(self.optimizer) if self.optimizer.clips() else None
        gradient, batch = self.gradient, arguments.tensors
        step: ExecutableStep | None = None
        try:
            if self._blocks is not None:
                step = tile_rows(
                    self._blocks, gradient, arguments, recording, groups, clip, self._finite
                )
            if step is None:
                leaves, passes = gradient.parameters, gradient.passes
                step = CompiledStep(recording, leaves, groups, batch, clip, self._finite, passes)
        except PassError:
            raise
        except Exception as error:
            self._stop(_summary(error), error)
            return None
        self._compiled[arguments.kind] = step
        return step

    def _finish(self, step: ExecutableStep, arguments: Arguments) -> bool:
        """Compile the step if it is not compiled yet; whether it is ready."""
        if step.ready:
            return True
        background = self._plan.reads_clock and self.level == "auto"
        known, expected = self._worker.knows(step), COSTS.compiling(step.recording)
        if known:
            if background and self._worker.pending(step):
                return False
            failure = self._worker.wait(self._announce, step)
            if failure is not None:
                self._stop(failure)
                return False
        try:
            if background and not known and any(s.ready for s in self._compiled.values()):
                self._compile_in_background(step, arguments)
                if self._worker.knows(step):
                    return False
            if not known:
                self._announce(
                    f"Compiling the step, {announced(expected)}, once; steps go on after it."
                )
            with timed(expected):
                step.compile(arguments.tensors, self._same_random)
        except PassError:
            raise
        except Exception as error:
            self._stop(_summary(error), error)
            return False
        return True

    def _stop(self, reason: str, error: Exception | None = None) -> None:
        if self.level == "compiled":
            raise CannotCaptureError(f"the step cannot be compiled: {reason}") from error
        self._compiles = False
        self._compiled.clear()
        self._announce(f"Running captured, not compiled: {reason}")

    # Update

    def _update(self, parameters: list[Tensor]) -> None:
        """Take the optimizer's step from the parameters' gradients, and clear them."""
        slots = None if self.level == "eager" else self.optimizer.parameter_slots(parameters)
        if slots is None or self._flat.plan(slots) is None:
            self.optimizer.step(parameters)
        else:
            for p in parameters if self.optimizer.clips() else ():
                self.optimizer.clip(p)
            self._flat.step(slots)
        for p in parameters:
            p.grad = None


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
