"""`CompiledSVI`: `pyro.infer.SVI` whose step is taken from a recording once it can be."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ppl_lvm.compiler.capture.captured_gradient import CapturedGradient, logger
from ppl_lvm.compiler.capture.state_watch import StateWatch
from ppl_lvm.compiler.optim.adapters import (
    OptimizerAdapter,
    PyroOptimizerAdapter,
    TorchOptimizerAdapter,
)
from ppl_lvm.compiler.training_step import LEVELS, Level, TrainingStep
from ppl_lvm.programs.minibatch import ScaleDataPlate


class _Parameters(Messenger):
    """Collects unconstrained parameters by identity: two modules may use one name."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, Tensor] = {}
        self.names: dict[str, Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        tensor = msg["value"].unconstrained()
        self.tensors[id(tensor)] = tensor
        self.names[msg["name"]] = tensor


class CompiledSVI:
    """Stochastic variational inference, with the call and the result of `pyro.infer.SVI`.

    Between steps the parameter store may be filled anew, parameters frozen and plain attributes
    of model, guide and loss set: steps are then captured anew. A number changed elsewhere (in a
    list, a closure, a global name) is not noticed: call `forget()` after it.

    Pyro's validation sees the steps that run the program, not the captured ones: a NaN in a later
    batch is not an error but a loss of NaN, and parameters are lost with it. Look at the losses.

    Args:
        model, guide: as for SVI.
        optimizer: a `pyro.optim` optimiser, or a function of a list of parameters that returns a
            torch one, such as `functools.partial(torch.optim.Adam, lr=0.01)`.
        loss: a `pyro.infer.ELBO`, Pyro's or ours.
        engine: "eager" is Pyro's own step. "captured" takes steps from a recording, and raises
            `CannotCaptureError` for a program that cannot be recorded. "compiled" has the
            recording and the update compiled. "auto" captures where possible and otherwise goes
            on eagerly with one message.
        announce: receives the messages; the logger `ppl_lvm.compiler` by default.
        max_captures: how many kinds of arguments (shapes, non-tensor values) are captured.
        same_random: whether compiled steps draw the eager step's random numbers; False lets the
            compiler draw its own, the same in distribution.

    Raises:
        ValueError: for an unknown level, a loss that is not an ELBO, a torch optimiser that holds
            parameters already, or rows that are not (S, B).
        CannotCaptureError: from `step`, where "captured" or "compiled" cannot be had.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optimizer: PyroOptim | Callable[[list[Tensor]], Optimizer],
        loss: ELBO,
        engine: Level = "auto",
        *,
        announce: Callable[[str], None] | None = None,
        max_captures: int = 8,
        same_random: bool = True,
    ) -> None:
        if engine not in LEVELS:
            raise ValueError(
                f"engine={engine!r} is none of 'auto', 'eager', 'captured' and 'compiled'."
            )
        if not isinstance(loss, ELBO):
            raise ValueError(
                f"loss must be a pyro.infer.ELBO, got {type(loss).__name__}; use pyro.infer.SVI "
                "for a bare loss function."
            )
        if isinstance(optimizer, Optimizer) or not (
            isinstance(optimizer, PyroOptim) or callable(optimizer)
        ):
            raise ValueError(
                "optimizer must be a pyro.optim optimiser, such as pyro.optim.Adam({'lr': 0.01}), "
                "or a function of the list of parameters, such as functools.partial("
                f"torch.optim.Adam, lr=0.01); got {type(optimizer).__name__}."
            )
        self.model, self.guide, self.loss, self.engine = model, guide, loss, engine
        self._found: list[Tensor] = []
        self._moved: dict[int, Tensor] = {}  # parameters that have had a gradient
        self._newly = False  # whether one of them had its first since something was captured
        self._state_watch: StateWatch | None = None
        say = announce or logger.warning
        gradient = CapturedGradient(
            self._loss_and_grads,
            lambda: [p for p in self._found if p.requires_grad],
            strict=engine in ("captured", "compiled"),
            watched=(model, guide, loss),
            announce=say,
            max_captures=max_captures,
        )
        stepper: OptimizerAdapter = (
            PyroOptimizerAdapter(optimizer)
            if isinstance(optimizer, PyroOptim)
            else TorchOptimizerAdapter(optimizer)
        )
        self._step = TrainingStep(
            gradient,
            stepper,
            engine,
            say,
            lambda: self._found,
            same_random=same_random,
            block=self._of_block,
        )
        self._scaled: dict[int, tuple[Any, Any]] = {}  # model and guide, by the rows of a batch

    @property
    def level(self) -> str:
        """The level at which steps are taken: "eager" until something is captured."""
        return self._step.active_level

    @property
    def num_captures(self) -> int:
        """How many kinds of arguments have been captured."""
        return self._step.gradient.num_captures

    @property
    def capture_error(self) -> str | None:
        """Why steps are eager, if the program cannot be captured."""
        return (
            str(self._step.gradient.capture_error)
            if self._step.gradient.capture_error is not None
            else None
        )

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one step on a batch; the loss (a float, or a tuple of them), a sum over all data."""
        self._look()
        return _numbers(self._step(*args, **kwargs))

    def steps(self, *data: Tensor, rows: Tensor) -> list[Any]:
        """One step for each row of `rows` (S, B), on the data at these indices; the S losses.

        Once steps are compiled they are one call, before that a plain loop. Either way the result
        is that of `step(*[d[r] for d in data])` for each r in `rows`.
        """
        if rows.dim() != 2 or rows.is_floating_point():
            raise ValueError(
                f"rows must be whole numbers (S, B), B rows for each of S steps; got {rows.dtype} "
                f"of shape {tuple(rows.shape)}."
            )
        self._look()
        losses: list[Any] = []
        while len(losses) < len(rows):
            left = rows[len(losses) :]
            found = self._many(list(data), left)
            if found is not None:
                return losses + found
            losses.append(self.step(*[tensor[left[0]] for tensor in data]))
        return losses

    def _many(self, data: list[Tensor], rows: Tensor) -> list[Any] | None:
        whole = self._step
        if whole.active_level != "compiled":
            return None
        losses = whole.run_steps(data, rows, len(rows))
        if losses is None:
            return None
        leaves, spec = pytree.tree_flatten(losses)
        turns = zip(*(leaf.tolist() for leaf in leaves), strict=True)
        return [pytree.tree_unflatten(turn, spec) for turn in turns]

    def forget(self) -> None:
        """Drop what has been captured: the program has been changed in a way nobody can see."""
        self._step.gradient.forget()

    def _look(self) -> None:
        """Capture anew where parameters or plain numbers have been replaced since."""
        watch, gradient = self._state_watch, self._step.gradient
        if watch is None or gradient.capture_error is not None:
            return
        replaced = watch.changed()
        if replaced:
            self._state_watch = None
            self._moved.clear()
        if replaced or (self._newly and gradient.num_captures):
            gradient.forget()
        self._newly = False

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss on a batch, without a step."""
        with torch.no_grad():
            loss = self.loss.loss(self.model, self.guide, *args, **kwargs)
        return _numbers(loss)

    def _loss_and_grads(self, *args: Any, **kwargs: Any) -> Any:
        with _Parameters() as found:
            loss = self.loss.loss_and_grads(self.model, self.guide, *args, **kwargs)
        self._found = list(found.tensors.values())
        moved = {id(p): p for p in self._found if p.grad is not None}
        self._newly |= not moved.keys() <= self._moved.keys()
        self._moved |= moved
        self._zero_the_rest()
        if self.engine != "eager":
            self._state_watch = StateWatch(found.names.items(), (self.model, self.guide, self.loss))
        return loss

    def _of_block(self, rows: int, *block: Any) -> Any:
        """As `_loss_and_grads`, for a block that stands for `rows`."""
        if rows not in self._scaled:
            self._scaled[rows] = ScaleDataPlate(rows)(self.model), ScaleDataPlate(rows)(self.guide)
        loss = self.loss.loss_and_grads(*self._scaled[rows], *block)
        self._zero_the_rest()
        return loss

    def _zero_the_rest(self) -> None:
        """Pyro leaves zeros in `.grad` after a step, so that momentum goes on where no gradient is.

        A parameter that this step's arguments do not use is moved by what is left of the last.
        """
        for p in self._found:
            if p.grad is None and p.requires_grad and id(p) in self._moved:
                p.grad = torch.zeros_like(p)


def _numbers(loss: Any) -> Any:
    if isinstance(loss, Tensor):
        return loss.item()
    return pytree.tree_map(lambda v: v.item() if isinstance(v, Tensor) else v, loss)
