"""A training step from a loss and a torch optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

from ppl_lvm.compiler.capture.captured_gradient import CapturedGradient, logger
from ppl_lvm.compiler.optim.adapters import TorchOptimizerAdapter
from ppl_lvm.compiler.passes import PIPELINE, Pass
from ppl_lvm.compiler.policy import CompilePolicy
from ppl_lvm.compiler.row_tiling import RowBlocks
from ppl_lvm.compiler.training_step import TrainingStep
from ppl_lvm.core.levels import Level


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
    blocks: RowBlocks | None = None,
    passes: Sequence[Pass] = PIPELINE,
) -> TrainingStep:
    """A function of a batch that takes a whole step and returns the result of `loss_and_grads`.

    After a step `.grad` is None.

    Args:
        loss_and_grads: see `ppl_lvm.compiler`.
        optimizer: its parameters are trained.
        engine: "eager" calls `loss_and_grads` at every step; "auto" captures and compiles where
            possible; "captured" and "compiled" raise `CannotCaptureError` where it is not.
        watched: model, guide and objective; a step must not change their plain attributes.
        announce: receives one-line messages; the logger `ppl_lvm.compiler` by default.
        max_captures: kinds of arguments that are captured.
        same_random, finite, capture_first, plan, blocks: see `TrainingStep`.
        passes: graph passes.
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
        passes=passes,
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
        blocks=blocks,
    )
