"""One whole step: loss, gradient, update, at the highest level that serves.

`captured` replays the recording and then updates on flat vectors; `compiled` does both in one
compiled function, made when a recording has been replayed long enough to pay for it ("auto") or at
once ("compiled").
"""

import time
from collections.abc import Callable, Hashable
from typing import Any, Literal

from torch import Tensor

from ppl_lvm.engine.arguments import Arguments
from ppl_lvm.engine.compiled import CompiledStep
from ppl_lvm.engine.flat import FlatGroup, FlatOptimizer
from ppl_lvm.engine.gradient import Gradient
from ppl_lvm.engine.many import ManySteps
from ppl_lvm.engine.optimizers import Stepper, clipped
from ppl_lvm.engine.recording import Recording
from ppl_lvm.engine.refusal import CannotCaptureError

Level = Literal["auto", "eager", "captured", "compiled"]
LEVELS = ("auto", "eager", "captured", "compiled")
_COST = (15.0, 0.02)  # seconds that compiling costs: in all, and for each node of the graph


class WholeStep:
    """`(batch) -> loss`, with the parameters updated.

    Args:
        gradient: gives the loss and leaves gradients in `.grad`.
        stepper: the optimiser.
        level: "eager", "captured", "compiled" or "auto".
        announce: receives one-line messages.
        same_random: whether a compiled step draws the eager step's random numbers.
    """

    def __init__(
        self,
        gradient: Gradient,
        stepper: Stepper,
        level: Level,
        announce: Callable[[str], None],
        same_random: bool = True,
    ) -> None:
        self.gradient, self.stepper, self.level = gradient, stepper, level
        self._announce, self._same_random = announce, same_random
        self._flat = FlatOptimizer()
        self._compiled: dict[Hashable, CompiledStep] = {}
        self._many: dict[int, ManySteps] = {}
        self._compiles = level in ("auto", "compiled")
        self._seconds = 0.0

    @property
    def reached(self) -> str:
        """The level of the steps that are being taken."""
        if self._compiled:
            return "compiled"
        return "captured" if self.gradient.num_captures else "eager"

    def __call__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], parameters: Callable[[], list[Tensor]]
    ) -> Any:
        """One step. `parameters` lists, after an eager step, those that took part."""
        if self._compiles and self.gradient.num_captures:
            try:
                arguments, recording = self.gradient.lookup(args, kwargs)
            except CannotCaptureError:
                recording = None  # the gradient will say so
            if recording is not None and self._pays(recording):
                step = self._find(arguments, recording)
                if step is not None:
                    return step(arguments.tensors)
        begun = time.perf_counter()
        loss = self._loss(args, kwargs)
        self.update([p for p in parameters() if p.grad is not None])
        if self.gradient.num_captures:
            self._seconds += time.perf_counter() - begun
        return loss

    def many(self, data: list[Tensor], rows: Tensor) -> Tensor | None:
        """Steps on `data[...][rows[s]]` for each s in one call, None if that cannot be had now."""
        batch = tuple(tensor[rows[0]] for tensor in data)
        arguments, recording = self.gradient.lookup(batch, {})
        step = None if recording is None else self._find(arguments, recording)
        if step is None:
            return None
        found = self._many.get(len(rows))
        if found is None or found.step is not step:
            found = self._many[len(rows)] = ManySteps(step, data, rows, self._same_random)
        return found(data, rows)

    def _loss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (
            self.gradient.eager(args, kwargs)
            if self.level == "eager"
            else self.gradient(*args, **kwargs)
        )

    def update(self, parameters: list[Tensor]) -> None:
        """Step the optimiser from the parameters' gradients, and clear them."""
        owned = None if self.level == "eager" else self.stepper.owned(parameters)
        if owned is None or self._flat.plan(owned) is None:
            self.stepper.step(parameters)
        else:
            if self.stepper.clips():
                for p in parameters:
                    self.stepper.clip(p)
            self._flat.step(owned)
        for p in parameters:
            p.grad = None

    def _pays(self, recording: Recording) -> bool:
        """Whether captured steps have cost what compiling will: at worst twice the best choice."""
        if self.level == "compiled":
            return True
        return self._seconds > _cost(recording)

    def _find(self, arguments: Arguments, recording: Recording) -> CompiledStep | None:
        active = recording.trained(self.gradient.parameters)
        owned = self.stepper.owned(active)
        groups = None if owned is None else self._flat.plan(owned)
        if groups is None:
            if owned is not None:
                self._stop("the optimiser has no flat rule; captured steps go on with it")
            return None
        key = self.gradient.key(arguments)
        step = self._compiled.get(key)
        if step is None or step.recording is not recording or step.groups is not groups:
            step = self._compile(recording, groups, arguments.tensors)
            if step is not None:
                self._compiled[key] = step
        return step

    def _compile(
        self, recording: Recording, groups: list[FlatGroup], batch: list[Tensor]
    ) -> CompiledStep | None:
        clip = clipped(self.stepper) if self.stepper.clips() else None
        self._announce(
            f"Compiling the step, about {_cost(recording):.0f} s once; steps go on after it."
        )
        try:
            parameters = self.gradient.parameters
            return CompiledStep(recording, parameters, groups, batch, clip, self._same_random)
        except Exception as error:
            self._stop(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}", error)
            return None

    def _stop(self, reason: str, error: Exception | None = None) -> None:
        if self.level == "compiled":
            raise CannotCaptureError(f"the step cannot be compiled: {reason}") from error
        self._compiles = False
        self._announce(f"Running captured, not compiled: {reason}")


def _cost(recording: Recording) -> float:
    return _COST[0] + _COST[1] * len(recording.module.graph.nodes)
