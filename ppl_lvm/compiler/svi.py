"""`pyro.infer.SVI` with captured and compiled steps."""

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.infer import ELBO, SVI
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ppl_lvm.compiler.capture.captured_gradient import CapturedGradient, logger
from ppl_lvm.compiler.capture.state_watch import CollectedParameters, StateWatch
from ppl_lvm.compiler.losses import FunctionLoss, without_jit
from ppl_lvm.compiler.optim.adapters import (
    OptimizerAdapter,
    PyroOptimizerAdapter,
    TorchOptimizerAdapter,
)
from ppl_lvm.compiler.passes import PIPELINE, Pass
from ppl_lvm.compiler.row_tiling import RowBlocks
from ppl_lvm.compiler.training_step import TrainingStep
from ppl_lvm.core.arguments import checked
from ppl_lvm.core.distributions import named_distribution_errors
from ppl_lvm.core.levels import Level
from ppl_lvm.core.public_calls import exclusive
from ppl_lvm.core.validate import Count, Whole
from ppl_lvm.particles.plate_dependence import sums_over_rows
from ppl_lvm.programs.batch_versions import refuse_changes, versions
from ppl_lvm.programs.minibatch import ScaleDataPlate
from ppl_lvm.programs.row_plates import row_plates


class _Turns:
    """Threads whose objects take steps: two that alternate share one generator."""

    def __init__(self) -> None:
        self._last: weakref.ref[Any] | None = None  # the object that has taken the last step
        self._thread = 0

    def take(self, svi: "CompiledSVI") -> None:
        """Note a step of an object.

        Raises:
            ValueError: since its last step another object has taken one in another thread.
        """
        thread = threading.get_ident()
        last = None if self._last is None else self._last()
        if last is not svi:
            if svi.has_stepped and last is not None and self._thread != thread:
                raise ValueError(
                    "CompiledSVI.step: another thread takes steps at the same time. Both draw from "
                    "torch's one generator, so that their numbers would depend on the order. Use "
                    "fit, whose calls wait for each other, or one process for each."
                )
            self._last = weakref.ref(svi)
        self._thread, svi.has_stepped = thread, True


_TURNS = _Turns()


class CompiledSVI(SVI):
    """`pyro.infer.SVI` whose steps are captured and compiled.

    Between steps the parameter store may be filled and plain attributes of model, guide and loss
    set: the step is then captured again. A number changed elsewhere (in a list, a closure, a
    global name) is not detected: call `forget()` after it. Parameters may be frozen and freed
    (`requires_grad_`): each selection is captured once. A frozen parameter stays, at every level;
    SVI, where it has been trained before, moves it by its optimizer's momentum.

    Gradient hooks of parameters run after each captured step, on the gradient that SVI would pass
    to them. With several backward passes a step (`num_particles`), and with hooks of other tensors
    or of modules, steps are eager.

    Pyro's validation sees the steps that run the program, not the captured ones. A NaN in a later
    batch then is no error but gives a loss of NaN, and the parameters are lost: check the losses.

    Args:
        model, guide: as for SVI.
        optim: a `pyro.optim` optimizer, or a function of a list of parameters that returns a torch
            one, such as `functools.partial(torch.optim.Adam, lr=0.01)`.
        loss: a `pyro.infer.ELBO`, Pyro's or ours, or as for SVI a function
            `loss(model, guide, *args)`.
        loss_and_grads, num_samples, num_steps: as for SVI.
        engine: "eager" is Pyro's step. "captured" takes steps from a recording, and raises
            `CannotCaptureError` for a program that cannot be recorded. "compiled" compiles the
            recording and the update. "auto" captures where possible and otherwise continues
            eagerly with one message.
        announce: receives the messages; the logger `ppl_lvm.compiler` by default.
        max_captures: number of kinds of arguments (shapes, non-tensor values) to capture.
        same_random: whether compiled steps draw the eager step's random numbers; False lets the
            compiler draw other numbers of the same distribution.
        passes: graph passes.

    Raises:
        ValueError: for an unknown level, a loss that is not an ELBO, a torch optimizer that has
            parameters already, or rows that are not (S, B).
        CannotCaptureError: from `step`, at the levels "captured" and "compiled".
    """

    @checked
    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim | Callable[[list[Tensor]], Optimizer],
        loss: ELBO | Callable[..., Any],
        loss_and_grads: Callable[..., Any] | None = None,
        num_samples: Whole = 0,
        num_steps: Whole = 0,
        *,
        engine: Level = "auto",
        announce: Callable[[str], None] | None = None,
        max_captures: Count = 8,
        same_random: bool = True,
        passes: Sequence[Pass] = PIPELINE,
    ) -> None:
        if isinstance(optim, Optimizer) or not (isinstance(optim, PyroOptim) or callable(optim)):
            raise ValueError(
                f"optim: {type(optim).__name__} is not supported. Pass a pyro.optim "
                "optimizer, such as pyro.optim.Adam({'lr': 0.01}), or a function of the list of "
                "parameters, such as functools.partial(torch.optim.Adam, lr=0.01)."
            )
        for name, number in (("num_steps", num_steps), ("num_samples", num_samples)):
            if number:
                warnings.warn(f"{name}: deprecated, as in SVI.", FutureWarning, stacklevel=2)
        super(SVI, self).__init__()  # SVI's constructor refuses torch optimizers
        self.model, self.guide, self.optim, self.engine = model, guide, optim, engine
        self.num_samples, self.num_steps = num_samples, num_steps
        self.objective: ELBO = (
            without_jit(loss) if isinstance(loss, ELBO) else FunctionLoss(loss, loss_and_grads)
        )
        self.loss, self.loss_and_grads = self.objective.loss, self.objective.loss_and_grads
        self.has_stepped = False
        self._parameters: list[Tensor] = []  # of the last eager step
        self._known: dict[int, Tensor] = {}  # parameters of all eager steps
        self._trained: dict[int, Tensor] = {}  # parameters that have had a gradient
        self._new_trained: set[int] = set()  # which had their first since the last capture
        self._state_watch: StateWatch | None = None
        say = announce or logger.warning
        gradient = CapturedGradient(
            self._loss_and_grads,
            lambda: [p for p in self._known.values() if p.requires_grad],
            strict=engine in ("captured", "compiled"),
            watched=(model, guide, self.objective),
            announce=say,
            max_captures=max_captures,
            passes=passes,
        )
        adapter: OptimizerAdapter = (
            PyroOptimizerAdapter(optim)
            if isinstance(optim, PyroOptim)
            else TorchOptimizerAdapter(optim)
        )
        self.training_step = TrainingStep(
            gradient,
            adapter,
            engine,
            say,
            lambda: list(self._known.values()),
            same_random=same_random,
            blocks=RowBlocks(self._loss_and_grads_of_block, self._sums_over_rows),
        )
        self._scaled: dict[int, tuple[Any, Any]] = {}  # rows of a batch -> model and guide

    @property
    def level(self) -> str:
        """The level of the steps that are taken now: "eager" until a step is captured."""
        return self.training_step.active_level

    @property
    def num_captures(self) -> int:
        """Number of kinds of arguments that have been captured."""
        return self.training_step.gradient.num_captures

    @property
    def capture_error(self) -> str | None:
        """The reason why the program cannot be captured, if steps are eager for it."""
        error = self.training_step.gradient.capture_error
        return None if error is None else str(error)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one step on a batch; return the loss (a float or a tuple), a sum over all data.

        Random numbers are those of torch's default generator, as in SVI.

        Under `torch.no_grad` or `torch.inference_mode` this is the loss alone: neither parameters
        nor the optimizer's state change. (Momentum of earlier gradients moves those of Pyro's SVI.)
        """
        with exclusive("CompiledSVI.step"), named_distribution_errors():
            _TURNS.take(self)
            self._detect_replacements()
            return _to_python(self.training_step(*args, **kwargs))

    @checked
    def steps(self, *data: Tensor, rows: Tensor) -> list[Any]:
        """Take S steps on the rows of the data that `rows` (S, B) lists; return the S losses.

        Once steps are compiled they are one call, before that a loop. In both cases the result is
        that of `step(*[d[r] for d in data])` for each r in `rows`.
        """
        whole = not rows.is_floating_point() and not rows.is_complex() and rows.dtype != torch.bool
        if rows.dim() != 2 or not whole:
            raise ValueError(
                f"rows: must be integers (S, B), B rows for each of S steps, got {rows.dtype} of "
                f"shape {tuple(rows.shape)}. Index the data's first dimension."
            )
        last = int(rows.max()) if rows.numel() else -1
        if odd := [k for k, d in enumerate(data) if d.is_sparse or d.is_meta or d.is_complex()]:
            raise ValueError(
                f"data[{odd[0]}]: a tensor of {data[odd[0]].dtype}, {data[odd[0]].layout}, on "
                f"{data[odd[0]].device}. Pass dense tensors of real numbers."
            )
        if short := [k for k, d in enumerate(data) if not d.dim() or len(d) <= last]:
            raise ValueError(
                f"rows: {last} is no row of data[{short[0]}], of shape "
                f"{tuple(data[short[0]].shape)}. Pass numbers from 0 to the number of rows - 1."
            )
        with exclusive("CompiledSVI.steps"), named_distribution_errors():
            _TURNS.take(self)
            self._detect_replacements()
            losses: list[Any] = []
            while len(losses) < len(rows):
                left = rows[len(losses) :]
                remaining = self._compiled_steps(list(data), left)
                if remaining is not None:
                    return losses + remaining
                losses.append(self.step(*[tensor[left[0]] for tensor in data]))
            return losses

    def _compiled_steps(self, data: list[Tensor], rows: Tensor) -> list[Any] | None:
        if self.training_step.active_level != "compiled":
            return None
        losses = self.training_step.run_steps(data, rows, len(rows))
        if losses is None:
            return None
        leaves, spec = pytree.tree_flatten(losses)
        steps = zip(*(leaf.tolist() for leaf in leaves), strict=True)
        return [pytree.tree_unflatten(step, spec) for step in steps]

    def forget(self) -> None:
        """Drop all captures, after a change of the program that is not detected."""
        self.training_step.gradient.forget()

    def _detect_replacements(self) -> None:
        """Capture again where parameters or plain numbers have been replaced.

        Where parameters have been frozen or freed, continue with the captures of that selection.
        """
        if not torch.is_grad_enabled():
            return  # no step is taken; the next one detects them
        watch, gradient = self._state_watch, self.training_step.gradient
        if watch is None or gradient.capture_error is not None:
            return
        if watch.changed():
            self._state_watch = None
            for table in (self._trained, self._known, self._new_trained):
                table.clear()
            gradient.forget()
        elif watch.toggled():
            gradient.sets.select(watch.frozen)
        if self._new_trained:
            gradient.sets.drop_those_that_train(self._new_trained)
            self._new_trained.clear()

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss on a batch, without a step."""
        with exclusive("CompiledSVI.evaluate_loss"), torch.no_grad():
            return _to_python(self._loss(*args, **kwargs))

    def _loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss under `torch.no_grad`."""
        try:
            return self.loss(self.model, self.guide, *args, **kwargs)
        except NotImplementedError:  # TraceTailAdaptive_ELBO has the one with gradients alone
            return self.loss_and_grads(self.model, self.guide, *args, **kwargs)

    def _loss_and_grads(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._loss(*args, **kwargs)
        before = versions(args)
        with CollectedParameters() as collected:
            loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        refuse_changes(args, before, "CompiledSVI.step")
        self._parameters = list(collected.tensors.values())
        self._known |= collected.tensors
        trained = {id(p): p for p in self._parameters if p.grad is not None}
        self._new_trained |= trained.keys() - self._trained.keys()
        self._trained |= trained
        self._zero_unused_gradients()
        if self.engine != "eager" and self.training_step.gradient.capture_error is None:
            self._watch(collected.names)
        return loss

    def _watch(self, names: dict[str, Tensor]) -> None:
        """Note parameters and plain numbers, whose replacement the next step detects."""
        watch = StateWatch(
            names.items(), (self.model, self.guide, self.objective), self._known.values()
        )
        self.training_step.gradient.sets.select(watch.frozen)
        self._state_watch = watch

    def _loss_and_grads_of_block(self, rows: int, *block: Any) -> Any:
        """`_loss_and_grads` of a block that stands for `rows`."""
        if rows not in self._scaled:
            plates = row_plates(self.model, self.guide, batch=block).names
            scale = ScaleDataPlate(rows, plates)
            self._scaled[rows] = scale(self.model), scale(self.guide)
        loss = self.loss_and_grads(*self._scaled[rows], *block)
        self._zero_unused_gradients()
        return loss

    def _sums_over_rows(self, batch: tuple[Tensor, ...]) -> bool:
        """True for an objective of Pyro or of this package on a sum over rows."""
        known = type(self.objective).__module__.partition(".")[0] in ("pyro", "ppl_lvm")
        return known and sums_over_rows(self.model, self.guide, batch)

    def _zero_unused_gradients(self) -> None:
        """Set zero gradients, as Pyro does, where these arguments do not use a trained parameter.

        The optimizer's momentum then moves it.
        """
        for p in self._parameters:
            if p.grad is None and p.requires_grad and id(p) in self._trained:
                p.grad = torch.zeros_like(p)


def _to_python(loss: Any) -> Any:
    if isinstance(loss, Tensor):
        return loss.item()
    return pytree.tree_map(lambda v: v.item() if isinstance(v, Tensor) else v, loss)
