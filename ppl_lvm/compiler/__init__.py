"""One step of stochastic variational inference: eager, captured or compiled.

A Pyro program spends most of a small step in Python: handlers, plates, traces. The engine writes
down the tensor operations of the step while it runs (`tape.py`), checks that the next step does
the same ones (`compare.py`), turns them into a graph (`recording.py`), checks that the graph
predicts an eager step from its seed (`gradient.py`), and from then on runs the graph. Under one
seed the levels take the same steps, to rounding.

On its own, in place of `pyro.infer.SVI`:

    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    loss = svi.step(x)

    losses = svi.steps(x, rows=index)   # index (S, B): S steps, in one call when compiled

In a loop that has its own torch optimiser and schedule, as `fit` has, a step at every level:

    step = make_training_step(loss_and_grads, optimizer, "auto", watched=(model, guide, elbo))
    loss = step(*batch)           # what loss_and_grads returns; parameters are updated

With `capture_first=True` each kind of batch is learnt on steps that change nothing, so that every
step
is taken at one level (and a resumed run repeats the run bit for bit); with `finite=True` a step
whose results are not all finite is not taken; a `plan` says when "auto" compiles,
`AheadOfTimePolicy` in the background. `step.many(...)` takes many steps in one compiled call
(`many.py`), several starts of a
program go abreast in one graph (`abreast.py`), and a compiled step on very many rows goes through
them in blocks that stay in the cache, where `block=` says how (`blocks.py`).

The same in two halves, which reach "captured":

    gradient = make_step(loss_and_grads, parameters, "auto", watched=(model, guide, elbo))
    update = make_update(optimizer)
    loss = gradient(*batch)       # gradients are now in each parameter's .grad
    update()                      # optimizer.step(), on flat vectors where it has a rule

`loss_and_grads(*batch)` runs the program, calls `backward` itself (once or more), may go on to
divide or clip `.grad` by torch operations, and returns the loss, or a tuple of tensors (the loss
and the gradient's largest entry, say, for a check by the caller). It reads no value into Python:
`float(norm)` or `if loss.isfinite()` stays outside.
Limits, not checked: a count that a program hides (in a generator, an object of its own) and that
first makes a difference after the first steps; data bound anew to a global name.

What may change between steps: parameters, batch tensors, and the contents of any tensor that the
program or `loss_and_grads` reads. So an annealed weight is a tensor that is filled in place
(`weight.fill_(0.3)`); as a Python number it would be frozen, and a step that changes one itself
is found out and refused. Replacing such a number from outside is not noticed: call
`gradient.forget()` after it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ppl_lvm.compiler.backend.multi_step import PerStepTensor
from ppl_lvm.compiler.capture.captured_gradient import CapturedGradient, logger
from ppl_lvm.compiler.errors import CannotCaptureError
from ppl_lvm.compiler.graph.build import Recording
from ppl_lvm.compiler.optim.adapters import TorchOptimizerAdapter
from ppl_lvm.compiler.optim.flat import FlatOptimizer
from ppl_lvm.compiler.passes.row_tiling import Block
from ppl_lvm.compiler.policy import AheadOfTimePolicy, CompilePolicy
from ppl_lvm.compiler.svi import CompiledSVI
from ppl_lvm.compiler.training_step import LEVELS, Level, NonFiniteStepError, TrainingStep

__all__ = [
    "LEVELS",
    "AheadOfTimePolicy",
    "CannotCaptureError",
    "CapturedGradient",
    "CompilePolicy",
    "CompiledSVI",
    "Level",
    "NonFiniteStepError",
    "PerStepTensor",
    "Recording",
    "TrainingStep",
    "make_step",
    "make_training_step",
    "make_update",
]


def make_step(
    loss_and_grads: Callable[..., Any],
    parameters: Sequence[Tensor],
    engine: Level = "auto",
    *,
    watched: Sequence[object] = (),
    announce: Callable[[str], None] | None = None,
    max_captures: int = 8,
) -> Callable[..., Any]:
    """A function of a batch that returns the loss and leaves gradients in `.grad`.

    Args:
        loss_and_grads: see the module's docstring.
        parameters: leaf tensors.
        engine: "eager" calls `loss_and_grads` itself, after clearing gradients; "auto" captures
            where possible; "captured" and "compiled" raise where it is not.
        watched: model, guide and objective: a step must not change their plain attributes.
        announce: receives one-line messages.
        max_captures: kinds of arguments that are captured.
    """
    if engine == "eager":

        def eager(*args: Any, **kwargs: Any) -> Any:
            for parameter in parameters:
                parameter.grad = None
            return loss_and_grads(*args, **kwargs)

        return eager
    return CapturedGradient(
        loss_and_grads,
        parameters,
        strict=engine in ("captured", "compiled"),
        watched=watched,
        announce=announce,
        max_captures=max_captures,
    )


def make_training_step(
    loss_and_grads: Callable[..., Any],
    optimizer: Optimizer,
    engine: Level = "auto",
    *,
    watched: Sequence[object] = (),
    announce: Callable[[str], None] | None = None,
    max_captures: int = 8,
    same_random: bool = True,
    finite: bool = False,
    capture_first: bool = False,
    plan: CompilePolicy | None = None,
    block: Block | None = None,
) -> TrainingStep:
    """A function of a batch that takes a whole step and returns what `loss_and_grads` returns.

    Arguments as for `make_step`; the parameters are the optimiser's. After a step `.grad` is
    None. `same_random` is as for `CompiledSVI`; `finite`, `capture_first`, `plan` and `block`
    are as for `TrainingStep`, which is what is returned.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    say = announce or logger.warning
    gradient = CapturedGradient(
        loss_and_grads,
        parameters,
        strict=engine in ("captured", "compiled"),
        watched=watched,
        announce=say,
        max_captures=max_captures,
    )
    return TrainingStep(
        gradient,
        TorchOptimizerAdapter(optimizer),
        engine,
        say,
        lambda: parameters,
        same_random=same_random,
        finite=finite,
        capture_first=capture_first,
        plan=plan,
        block=block,
    )


def make_update(optimizer: Optimizer) -> Callable[[], None]:
    """`optimizer.step` on flat vectors: Adam, AdamW, SGD and Pyro's ClippedAdam; others as ever.

    `optimizer.state_dict()` stays what the optimiser itself would have written.
    """
    flat = FlatOptimizer()
    stepper = TorchOptimizerAdapter(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def update() -> None:
        owned = stepper.parameter_slots([p for p in parameters if p.grad is not None])
        if not flat.step(owned or []):
            optimizer.step()

    return update
