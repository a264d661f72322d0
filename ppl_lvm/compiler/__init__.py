"""Training steps of stochastic variational inference: eager, captured or compiled.

A Pyro program spends most of a small step in Python: handlers, plates, traces. The compiler records
the tensor operations of a step on a tape (`capture.tape`), checks that the next step makes the same
ones (`capture.tape_diff`), makes a graph of them (`graph.build`), and checks that the graph
predicts an eager step from its seed (`capture.captured_gradient`). From then on it runs the graph.
Under one seed all levels take the same steps, to rounding.

In place of `pyro.infer.SVI`:

    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    loss = svi.step(x)

    losses = svi.steps(x, rows=index)   # index (S, B): S steps, in one call when compiled

In a training loop with a torch optimizer and schedule:

    step = make_training_step(loss_and_grads, optimizer, "auto", watched=(model, guide, elbo))
    loss = step(*batch)           # the result of loss_and_grads; parameters are updated

`loss_and_grads(*batch)` runs the program, calls `backward` once or more, may divide or clip `.grad`
by torch operations, and returns the loss, or a tuple of tensors (such as the loss and the largest
entry of the gradient). It reads no value into Python: `float(norm)` or `if loss.isfinite()` stays
outside.

Parameters, batch tensors and the contents of any tensor that the program or `loss_and_grads` reads
may change between steps. An annealed weight is a tensor that is filled in place
(`weight.fill_(0.3)`); as a Python number it would be frozen. A step that changes a Python number is
refused. A number that is replaced from outside is not detected by `make_training_step`: call
`step.gradient.forget()` after it.

Limits, not checked: a counter that a program hides (in a generator, in an attribute of another
object) and that makes a difference only after the first steps; data bound anew to a global name.

`capture_first`, `finite` and `plan` of `make_training_step` control trial steps, the rejection of
NaN, and the time of compiling. Optimizers are updated on flat vectors where
`optim.update_rules.RULES` has a rule. `passes.PIPELINE` lists the graph passes.
`vectorize_restarts` trains several restarts in one graph, and `row_tiling` takes steps on many rows
in blocks.
"""

from ppl_lvm.compiler.backend.executable_step import Pauses, PerStepTensor
from ppl_lvm.compiler.capture.captured_gradient import CapturedGradient
from ppl_lvm.compiler.graph.ir import Recording
from ppl_lvm.compiler.loss_step import make_training_step
from ppl_lvm.compiler.policy import AheadOfTimePolicy, CompilePolicy
from ppl_lvm.compiler.svi import CompiledSVI
from ppl_lvm.compiler.training_step import TrainingStep
from ppl_lvm.core.errors import CannotCaptureError
from ppl_lvm.core.levels import LEVELS, Level

__all__ = [
    "LEVELS",
    "AheadOfTimePolicy",
    "CannotCaptureError",
    "CapturedGradient",
    "CompilePolicy",
    "CompiledSVI",
    "Level",
    "Pauses",
    "PerStepTensor",
    "Recording",
    "TrainingStep",
    "make_training_step",
]
