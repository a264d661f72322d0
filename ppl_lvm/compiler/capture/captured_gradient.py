"""The loss and its gradient, first by running the program, then from its recording.

A program is recorded in three steps, each of which is an ordinary eager step of the run, so the
sequence of parameters and random numbers is the one that it would have been:

1. a plain step, with Pyro's own validation, after which every parameter exists;
2. a watched step: the tape shows whether the program can be captured at all;
3. a second watched step: its tape must agree with the first, and the graph made from the *first*
   tape, given this step's random numbers, batch and state, must return this step's loss, gradient
   and new state. Only then are steps taken from a graph.

Arguments of another shape are recorded in two steps more, up to `max_captures` shapes.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_lvm.compiler.capture import state_snapshot as outside
from ppl_lvm.compiler.capture.arguments import Arguments, flatten
from ppl_lvm.compiler.capture.recorder import watch
from ppl_lvm.compiler.capture.state_snapshot import PythonStateSnapshot
from ppl_lvm.compiler.capture.tape import Tape
from ppl_lvm.compiler.capture.tape_diff import state_pairs
from ppl_lvm.compiler.errors import CannotCaptureError
from ppl_lvm.compiler.graph.build import (
    Recording,
    aliased_write,
    build,
    changed_sources,
    refuse_data_dependence,
)
from ppl_lvm.compiler.passes.horizontal_fusion import fuse_isomorphic_ops
from ppl_lvm.core.rng import generator_states

logger = logging.getLogger("ppl_lvm.compiler")

_TOLERANCE = 1e-5  # relative, of a check of the same operations on the same numbers
_ATTEMPTS = 3  # watched steps that may disagree (caches filling up) before we give up


@dataclass
class _Entry:
    """What is known about arguments of one key."""

    tape: Tape | None = None
    plain: dict[str, Any] | None = None
    attempts: int = 0
    recording: Recording | None = None


class CapturedGradient:
    """`(batch) -> loss` with gradients in the parameters' `.grad`, captured when possible.

    Args:
        loss_and_grads: runs the program, leaves gradients in `.grad`, returns the loss. It may go
            on to change the gradients (divide, clip) by torch operations.
        parameters: the leaf tensors, or a function that lists them after the first step.
        strict: raise `CannotCaptureError` where the default goes on eagerly with one message.
        watched: the model, guide and objective, whose plain attributes must not change.
        announce: receives one-line messages; they go to the logger `ppl_lvm.compiler` by default.
        max_captures: kinds of arguments that are captured; others run eagerly.
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
    ) -> None:
        self.capture_error: CannotCaptureError | None = None
        self.parameters: list[Tensor] = []
        self._loss_and_grads = loss_and_grads
        self._list_parameters = parameters
        self._strict = strict
        self.watched = watched
        self._announce = announce or logger.warning
        self._max_captures = max_captures
        self._entries: dict[Hashable, _Entry] = {}
        self._modules = outside.modules(watched)
        self._full = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The loss (tensors once captured, what the program returns before)."""
        if self.capture_error is not None:
            return self.eager(args, kwargs)
        try:
            arguments, recording = self.lookup(args, kwargs)
            if recording is not None:
                return self._replay(recording, arguments)
            return self._learn(arguments, args, kwargs)
        except CannotCaptureError as refusal:
            if self._strict:
                raise
            self.capture_error = refusal
            self._entries.clear()
            self._announce(f"Running eagerly, not captured. {refusal}")
            return self.eager(args, kwargs)

    def lookup(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Arguments, Recording | None]:
        """The arguments sorted, and the recording that serves them if there is one."""
        arguments = flatten(args, kwargs)
        entry = self._entries.get(self.key(arguments))
        return arguments, entry.recording if entry is not None else None

    def key(self, arguments: Arguments) -> Hashable:
        return arguments.key, tuple([m.training for m in self._modules])

    def dry_run_capture(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], before: PythonStateSnapshot
    ) -> None:
        """Record these arguments on steps that change nothing, if they can be recorded.

        Args:
            before: the state to go back to.
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
        """Go on eagerly, for a reason known from before."""
        if self.capture_error is None:
            refusal = CannotCaptureError(reason)
            if self._strict:
                raise refusal
            self.capture_error = refusal
            self._announce(f"Running eagerly, not captured. {reason}")

    @property
    def num_captures(self) -> int:
        return sum(e.recording is not None for e in self._entries.values())

    @property
    def small(self) -> bool:
        """Whether all that has been captured does with one thread."""
        found = [e.recording for e in self._entries.values() if e.recording is not None]
        return bool(found) and all(recording.small for recording in found)

    def forget(self) -> None:
        """Drop every recording (a parameter or a module has been replaced)."""
        self._entries.clear()
        self.parameters.clear()
        self.capture_error, self._full = None, False

    # Steps that run the program

    def eager(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the program, whatever has been captured."""
        self._drop_rebinding()
        for parameter in self.parameters:
            parameter.grad = None
        return self._loss_and_grads(*args, **kwargs)

    def _drop_rebinding(self) -> None:
        """The program is about to bind its state anew: recordings that hold the old are void."""
        for key, entry in self._entries.items():
            if entry.recording is not None and entry.recording.rebinds:
                self._entries[key] = _Entry(attempts=entry.attempts + 1)
                if entry.attempts + 1 >= _ATTEMPTS:
                    raise CannotCaptureError(
                        "the program binds its state anew each step and its arguments change "
                        "shape; change the state in place (tensor.copy_)"
                    )

    def _learn(self, arguments: Arguments, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.parameters:
            loss = self.eager(args, kwargs)
            listed = self._list_parameters
            self.parameters = list(listed() if callable(listed) else listed)
            return loss
        key = self.key(arguments)
        if key not in self._entries and len(self._entries) >= self._max_captures:
            self._say_full()
            return self.eager(args, kwargs)
        entry = self._entries.setdefault(key, _Entry())
        return self._watch(entry, arguments, args, kwargs)

    def _say_full(self) -> None:
        if not self._full:
            self._full = True
            self._announce(
                f"{self._max_captures} kinds of arguments have come, {self.num_captures} of them "
                "twice or more and captured; others run eagerly. Pass changing numbers as tensors "
                "and keep to few batch sizes."
            )

    def _watch(
        self, entry: _Entry, arguments: Arguments, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if any(t.requires_grad for t in arguments.tensors):
            raise CannotCaptureError("an argument requires a gradient")
        self._drop_rebinding()
        before = outside.random_states()
        plain = outside.plain_attributes(self.watched)
        batch = [t.detach() for t in arguments.tensors]  # the model may hold the tensor itself
        known = [] if entry.tape is None else [s.tensor for s in entry.tape.sources]
        found = [(tensor, tensor.detach().clone()) for tensor in known]
        try:
            loss, tape = watch(
                lambda: arguments.call(self._loss_and_grads, batch), self.parameters, batch
            )
        except CannotCaptureError:
            outside.restore_random(before)
            raise
        refusal = aliased_write(found, tape) or self._judge(entry, tape, before, plain, batch)
        if refusal is not None:
            return self._give_up(refusal, loss)
        return loss

    def _judge(
        self,
        entry: _Entry,
        tape: Tape,
        before: dict[str, Any],
        plain: dict[str, Any],
        batch: list[Tensor],
    ) -> CannotCaptureError | None:
        """Take a tape into account; the reason if it shows that the program cannot be captured."""
        try:
            outside.refuse_foreign_randomness(before)
            refuse_data_dependence(tape, changed_sources(tape))
            self._refuse_new_parameters(tape)
        except CannotCaptureError as refusal:
            return refusal
        after = outside.plain_attributes(self.watched)
        try:
            if entry.tape is not None:
                outside.reject_attribute_changes(plain, after)
                self._record(entry, entry.tape, tape, before, batch)
                return None
        except CannotCaptureError as refusal:
            entry.attempts += 1
            if entry.attempts >= _ATTEMPTS:
                return refusal
        entry.tape = tape
        return None

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
        """The step has been taken, its gradients are in place: keep it, and go on eagerly."""
        if self._strict:
            raise refusal
        self.capture_error = refusal
        self._entries.clear()
        self._announce(f"Running eagerly, not captured. {refusal}")
        return loss

    # The recording

    def _record(
        self,
        entry: _Entry,
        earlier: Tape,
        later: Tape,
        before: dict[str, Any],
        batch: list[Tensor],
    ) -> None:
        pairs = state_pairs(earlier, later)
        old = {s.index: s.before.clone() for s in later.sources}
        trial = build(earlier, pairs, old)
        given = [*self.parameters, *batch, *trial.sources]
        short = fuse_isomorphic_ops(trial.module, given, trial.constants)
        if short is not None:
            try:
                self._check(short.of(trial), later, pairs, before, batch)
            except CannotCaptureError:
                short = None
        if short is None:
            self._check(trial, later, pairs, before, batch)
        changed = changed_sources(later)
        changes = {place for place, s in enumerate(later.sources) if s.index in changed}
        recording = replace(
            trial if short is None else short.of(trial),
            sources=[
                later.held[pairs[s.index]] if s.index in pairs else s.tensor for s in later.sources
            ],
            mutated=sorted({*trial.mutated, *changes}),
            reads=max(tensor.nbytes for tensor in (*given, *trial.constants)),
        )
        entry.tape, entry.recording = None, recording
        if self.num_captures > 1:
            logger.info("captured a step for another kind of arguments (%d)", self.num_captures)

    def _check(
        self,
        trial: Recording,
        tape: Tape,
        pairs: dict[int, int],
        before: dict[str, Any],
        batch: list[Tensor],
    ) -> None:
        """The earlier step's graph must predict the later step, from its seed and its state."""
        after = outside.random_states()
        outside.restore_random(before)
        wanted = [p.grad for p in self.parameters if p.grad is not None]
        losses = [v for v in pytree.tree_leaves(tape.losses) if isinstance(v, Tensor)]
        try:
            with torch.no_grad():
                found = trial.module(*self.parameters, *batch, *trial.sources, *trial.constants)
        finally:
            moved = generator_states()
            outside.restore_random(after)
        if not all(map(torch.equal, moved, after["torch"])):
            raise CannotCaptureError(
                "the captured step draws other random numbers than the program, which may set a "
                "seed or a random state itself"
            )
        for got, expected in zip(found, [*losses, *wanted], strict=True):
            _agree(got, expected, "the loss or a gradient")
        for source, state in zip(tape.sources, trial.sources, strict=True):
            now = tape.held[pairs[source.index]] if source.index in pairs else source.tensor
            _agree(state, now, "a tensor that the program keeps")

    def _replay(self, recording: Recording, arguments: Arguments) -> Any:
        with torch.no_grad():
            out = recording.module(
                *self.parameters, *arguments.tensors, *recording.sources, *recording.constants
            )
        gradients = iter(out[recording.num_losses :])
        for parameter, active in zip(self.parameters, recording.active, strict=True):
            parameter.grad = next(gradients) if active else None
        return recording.losses(out)


def _agree(found: Tensor, expected: Tensor, what: str) -> None:
    tolerance = {"rtol": 0.0, "atol": 0.0}
    if expected.is_floating_point() and expected.numel():
        scale = expected.detach().abs().max()
        if scale.isfinite():
            tolerance = {"rtol": _TOLERANCE, "atol": _TOLERANCE * float(scale)}
    if not torch.allclose(found.detach(), expected.detach(), equal_nan=True, **tolerance):
        worst = float((found.double() - expected.double()).abs().max())
        raise CannotCaptureError(f"{what} captured differs from the eager one by {worst:.3g}")
