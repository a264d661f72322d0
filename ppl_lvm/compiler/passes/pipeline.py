"""Pass pipeline: order of passes, and treatment of failures."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from ppl_lvm.compiler.graph.ir import Recording
from ppl_lvm.compiler.passes.base import Pass, Stage
from ppl_lvm.compiler.passes.broadcast_sinking import BroadcastSinking
from ppl_lvm.compiler.passes.horizontal_fusion import HorizontalFusion

logger = logging.getLogger("ppl_lvm.compiler")

PIPELINE: tuple[Pass, ...] = (HorizontalFusion(), BroadcastSinking())  # in order of application

_strict: ContextVar[bool] = ContextVar("strict_passes", default=False)


class PassError(RuntimeError):
    """A pass failed in strict mode."""


@contextmanager
def strict_passes(strict: bool = True) -> Iterator[None]:
    """Raise `PassError` where a pass fails; by default a failing pass is skipped and logged."""
    token = _strict.set(strict)
    try:
        yield
    finally:
        _strict.reset(token)


def run_passes(
    passes: Sequence[Pass], stage: Stage, recording: Recording, inputs: Sequence[Tensor]
) -> Recording:
    """Apply the passes of one stage; return the recording itself if none of them changes it.

    Args:
        passes: in order of application.
        stage: see `Pass`.
        recording: whose graph is rewritten.
        inputs: parameters, batch and sources that the graph is called with.

    Raises:
        PassError: in strict mode.
    """
    for graph_pass in passes:
        if graph_pass.stage != stage:
            continue
        try:
            rewritten = graph_pass.apply(recording.module, inputs, recording.constants)
        except Exception as error:  # such as an operation without a rule for `vmap`
            skip(graph_pass.name, error)
            continue
        if rewritten is not None:
            recording = rewritten.in_recording(recording)
    return recording


def skip(name: str, error: Exception) -> None:
    """Log why the result of a pass is not used.

    Raises:
        PassError: in strict mode.
    """
    if _strict.get():
        raise PassError(f"{name}: {type(error).__name__}: {error}") from error
    logger.info("%s is skipped: %s: %s", name, type(error).__name__, error)
