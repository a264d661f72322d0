"""Loss and gradient from a recording of the program.

A program is recorded in three steps. Each is an ordinary eager step of the run, so that the
sequence of parameters and random numbers is unchanged:

1. A plain step, with Pyro's validation, after which every parameter exists.
2. A recorded step: its tape shows whether the program can be captured at all.
3. A second recorded step: its tape must agree with the first, and the graph made from the *first*
   tape, called with this step's random numbers, batch and state, must return this step's loss,
   gradient and new state. Only then are steps taken from the graph.

Arguments of another shape are recorded in two more steps, up to `max_captures` shapes.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.compiler.capture.arguments import Arguments, VaryingNumbers, flatten
from ppl_lvm.compiler.capture.capture_sets import CapturedKind, CaptureSets
from ppl_lvm.compiler.capture.gradient_hooks import has_hooks, run_hooks
from ppl_lvm.compiler.capture.prediction import check_prediction
from ppl_lvm.compiler.capture.recorder import record
from ppl_lvm.compiler.capture.state_snapshot import (
    PythonStateSnapshot,
    forward_hooks,
    modules,
    plain_attributes,
    refuse_foreign_randomness,
    reject_attribute_changes,
)
from ppl_lvm.compiler.capture.tape_diff import state_pairs
from ppl_lvm.compiler.graph.build import (
    aliased_write,
    build,
    changed_sources,
    refuse_data_dependence,
)
from ppl_lvm.compiler.graph.ir import Recording, Tape
from ppl_lvm.compiler.passes import PIPELINE, Pass, run_passes, skip
from ppl_lvm.core.errors import CannotCaptureError
from ppl_lvm.core.rng import RngState

logger = logging.getLogger("ppl_lvm.compiler")

_ATTEMPTS = 3  # recorded steps that may disagree (caches filling up) before capture is given up


class CapturedGradient:
    """`(batch) -> loss` with gradients in the parameters' `.grad`, captured when possible.

    Args:
        loss_and_grads: runs the program, leaves gradients in `.grad`, returns the loss. It may
            change the gradients (divide, clip) by torch operations.
        parameters: the leaf tensors, or a function that lists them after the first step.
        strict: raise `CannotCaptureError` where the default continues eagerly with one message.
        watched: the model, guide and objective, whose plain attributes must not change.
        announce: receives one-line messages; the logger `ppl_lvm.compiler` by default.
        max_captures: kinds of arguments that are captured; others run eagerly.
        passes: graph passes, those of the stage "compile" included.
    """

    def __init__(
        self,
        loss_and_grads: Callable[..., Any],
        parameters: Sequence[Tensor] | Callable[[], Sequence[Tensor]],
        *,
        strict: bool = False,
        watched: Sequence[object] = (),
        announce: Callable[[str], None] | None = None,
        max_captures: int = 8,
        passes: Sequence[Pass] = PIPELINE,
    ) -> None:
        self.capture_error: CannotCaptureError | None = None
        self.sets = CaptureSets(max_captures)
        self._loss_and_grads = loss_and_grads
        self._list_parameters = parameters
        self._strict = strict
        self.watched, self.passes = watched, passes
        self._announce = announce or logger.warning
        self._max_captures = max_captures
        self._modules = modules(watched)
        self._announced_limit = False
        self._numbers = VaryingNumbers()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The loss: tensors once captured, before that as the program returns it.

        Under `torch.no_grad` the program runs, and gradients and recordings stay.
        """
        if not torch.is_grad_enabled():
            return self._loss_and_grads(*args, **kwargs)
        if self.capture_error is not None:
            return self.eager(args, kwargs)
        try:
            arguments, recording = self.lookup(args, kwargs)
            if recording is not None:
                return self.replay(recording, arguments)
            return self._learn(arguments, args, kwargs)
        except CannotCaptureError as refusal:
            self._refuse(refusal)
            return self.eager(args, kwargs)

    def lookup(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Arguments, Recording | None]:
        """The flattened arguments, and their recording if it exists."""
        for module in self._modules:
            if module._backward_hooks or module._backward_pre_hooks:
                name = type(module).__name__
                raise CannotCaptureError(f"{name} has a backward hook, which a recording lacks")
        arguments = flatten(args, kwargs, self._numbers)
        arguments.kind = self._kind(arguments)
        entry = self.sets.current.entries.get(arguments.kind)
        return arguments, entry.recording if entry is not None else None

    @property
    def parameters(self) -> list[Tensor]:
        """The leaf tensors that are trained now; none before the first step."""
        return self.sets.current.parameters

    @property
    def hooked(self) -> list[int]:
        """The places of parameters that have gradient hooks."""
        return [place for place, p in enumerate(self.parameters) if has_hooks(p)]

    def _kind(self, arguments: Arguments) -> Hashable:
        """The key of their capture: of arguments, modules' modes, hooks, trainable parameters.

        A parametrization that is registered later changes the class of its module.
        """
        modes = [(m.training, type(m), len(m._modules)) for m in self._modules]
        hooks = [id(hook) for hook in forward_hooks(self._modules)]
        hooks += self.hooked
        return arguments.key, tuple(modes), tuple(hooks), self.sets.current.number

    def dry_run_capture(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], before: PythonStateSnapshot
    ) -> None:
        """Record these arguments on trial steps that change nothing, if they can be recorded.

        Args:
            before: the state to restore after each step.
        """
        for _ in range(2 + _ATTEMPTS):
            if self.capture_error is not None or self.lookup(args, kwargs)[1] is not None:
                break
            try:
                self(*args, **kwargs)
            finally:
                before.restore()
                for parameter in self.parameters:
                    parameter.grad = None

    def disable_capture(self, reason: str) -> None:
        """Take eager steps, for a reason known beforehand."""
        if self.capture_error is None:
            refusal = CannotCaptureError(reason)
            if self._strict:
                raise refusal
            self.capture_error = refusal
            self._announce(f"Running eagerly, not captured. {reason}")

    @property
    def num_captures(self) -> int:
        """Number of kinds of arguments that have been captured."""
        return len(self.recordings)

    @property
    def small(self) -> bool:
        """True if one thread is enough for every recording."""
        recordings = self.recordings
        return bool(recordings) and all(recording.small for recording in recordings)

    @property
    def recordings(self) -> list[Recording]:
        """The recordings of all kinds of arguments."""
        return self.sets.recordings()

    def forget(self) -> None:
        """Drop every recording (a parameter or a module has been replaced)."""
        self.sets.clear()
        self.capture_error, self._announced_limit = None, False

    # Steps that run the program

    def eager(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the program, also where a recording exists."""
        self._drop_rebinding()
        for parameter in self.parameters:
            parameter.grad = None
        return self._loss_and_grads(*args, **kwargs)

    def _drop_rebinding(self) -> None:
        """Drop recordings that hold state which the program is about to bind anew."""
        for captures, key, entry in self.sets.entries():
            if entry.recording is not None and entry.recording.rebinds:
                captures.entries[key] = CapturedKind(attempts=entry.attempts + 1)
                if entry.attempts + 1 >= _ATTEMPTS:
                    raise CannotCaptureError(
                        "the program binds its state anew each step and its arguments change "
                        "shape; change the state in place (tensor.copy_)"
                    )

    def _learn(self, arguments: Arguments, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.sets.current.open:
            self._announce_limit("selections of trainable parameters")
            return self.eager(args, kwargs)
        if not self.parameters:
            loss = self.eager(args, kwargs)
            self.sets.current.parameters = self._listed()
            return loss
        if self._numbers.note(arguments):
            double = any(p.dtype is torch.float64 for p in self.parameters)
            self._numbers.dtype = torch.float64 if double else torch.float32
            self._drop_entries()
            return self.eager(args, kwargs)
        key, entries = arguments.kind, self.sets.current.entries
        if key not in entries and len(entries) >= self._max_captures:
            self._announce_limit("kinds of arguments")
            return self.eager(args, kwargs)
        return self._record_step(entries.setdefault(key, CapturedKind()), arguments)

    def _listed(self) -> list[Tensor]:
        listed = self._list_parameters
        return list(listed() if callable(listed) else listed)

    def _drop_entries(self) -> None:
        for captures, key, _ in self.sets.entries():
            del captures.entries[key]

    def _announce_limit(self, kinds: str) -> None:
        if not self._announced_limit:
            self._announced_limit = True
            self._announce(
                f"{self._max_captures} {kinds} have come, {self.num_captures} of them "
                "twice or more and captured; others run eagerly. Pass changing numbers as tensors "
                "and keep to few batch sizes."
            )

    def _record_step(self, entry: CapturedKind, arguments: Arguments) -> Any:
        """Take an eager step and record it."""
        if any(t.requires_grad for t in arguments.tensors):
            raise CannotCaptureError("an argument requires a gradient")
        self._drop_rebinding()
        before = RngState.capture()
        plain = plain_attributes(self.watched)
        batch = [t.detach() for t in arguments.tensors]  # the model may hold the tensor itself
        sources = [] if entry.tape is None else [s.tensor for s in entry.tape.sources]
        snapshots = [(tensor, tensor.detach().clone()) for tensor in sources]
        try:
            loss, tape = record(
                lambda: arguments.call(self._loss_and_grads, batch), self.parameters, batch
            )
        except CannotCaptureError:
            before.restore()
            raise
        refusal = aliased_write(snapshots, tape) or self._judge(entry, tape, before, plain, batch)
        run_hooks([self.parameters[place] for place in tape.hooked])
        if refusal is not None:
            return self._give_up(refusal, loss)
        return loss

    def _judge(
        self,
        entry: CapturedKind,
        tape: Tape,
        before: RngState,
        plain: dict[str, Any],
        batch: list[Tensor],
    ) -> CannotCaptureError | None:
        """Add a tape to what is known; the reason if it shows that capture is impossible."""
        try:
            refuse_foreign_randomness(before)
            refuse_data_dependence(tape, changed_sources(tape))
            if self._extend_parameters():
                return None
            self._refuse_new_parameters(tape)
        except CannotCaptureError as refusal:
            return refusal
        after = plain_attributes(self.watched)
        try:
            if entry.tape is not None:
                reject_attribute_changes(plain, after)
                self._build(entry, entry.tape, tape, before, batch)
                return None
        except CannotCaptureError as refusal:
            entry.attempts += 1
            if entry.attempts >= _ATTEMPTS:
                return refusal
        entry.tape = tape
        return None

    def _extend_parameters(self) -> bool:
        """Record anew, with parameters that these arguments were the first to use."""
        current, listed = self.sets.current, self._listed()
        known = {id(p) for p in current.parameters}
        if current.extensions >= self._max_captures or known >= {
            id(p) for p in listed if p.grad is not None
        }:
            return False
        current.entries.clear()
        current.parameters, current.extensions = listed, current.extensions + 1
        return True

    def _refuse_new_parameters(self, tape: Tape) -> None:
        for source in tape.sources:
            if (
                source.tensor.requires_grad
                and source.tensor.is_leaf
                and source.tensor.grad is not None
            ):
                raise CannotCaptureError(
                    f"a parameter of shape {tuple(source.tensor.shape)} gets a gradient but is not "
                    "among those that are trained; make its module a PyroModule, or create it in "
                    "the first step",
                    source.where,
                )

    def _give_up(self, refusal: CannotCaptureError, loss: Any) -> Any:
        """Keep the step, whose gradients are in place, and take eager steps from now on."""
        self._refuse(refusal)
        return loss

    def _refuse(self, refusal: CannotCaptureError) -> None:
        """Take eager steps from now on; record again if a number was passed as a tensor."""
        self._drop_entries()
        if self._numbers.refuse():
            return
        if self._strict:
            raise refusal
        self.capture_error = refusal
        self._announce(f"Running eagerly, not captured. {refusal}")

    # The recording

    def _build(
        self, entry: CapturedKind, earlier: Tape, later: Tape, before: RngState, batch: list[Tensor]
    ) -> None:
        """Make the recording of two tapes and check it."""
        pairs = state_pairs(earlier, later)
        trial = build(earlier, pairs, {s.index: s.before.clone() for s in later.sources})
        inputs = [*self.parameters, *batch, *trial.sources]
        optimized = run_passes(self.passes, "capture", trial, inputs)
        try:
            check_prediction(optimized, later, pairs, before, self.parameters, batch)
        except CannotCaptureError as error:
            if optimized is trial:
                raise
            check_prediction(trial, later, pairs, before, self.parameters, batch)
            skip("the graph after the passes", error)
            optimized = trial
        changed = changed_sources(later)
        changes = {place for place, s in enumerate(later.sources) if s.index in changed}
        recording = replace(
            optimized,
            sources=[
                later.live_results[pairs[s.index]] if s.index in pairs else s.tensor
                for s in later.sources
            ],
            mutated=sorted({*trial.mutated, *changes}),
            reads=max(tensor.nbytes for tensor in (*inputs, *trial.constants)),
        )
        entry.tape, entry.recording = None, recording
        if self.num_captures > 1:
            logger.info("captured a step for another kind of arguments (%d)", self.num_captures)

    def replay(self, recording: Recording, arguments: Arguments) -> Any:
        """The loss from a recording, with gradients in `.grad`."""
        with torch.no_grad():
            out = recording.module(
                *self.parameters, *arguments.tensors, *recording.sources, *recording.constants
            )
        gradients = iter(out[recording.num_losses :])
        for parameter, active in zip(self.parameters, recording.active, strict=True):
            parameter.grad = next(gradients) if active else None
        run_hooks([self.parameters[place] for place in recording.hooked])
        return recording.losses(out)
