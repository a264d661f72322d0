"""Iterations with checkpoints."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ppl_lvm.core import distributed, interrupts
from ppl_lvm.core.errors import WriteError
from ppl_lvm.core.storage import save_checkpoint
from ppl_lvm.training import checkpoint
from ppl_lvm.training.identity import Identity

logger = logging.getLogger("ppl_lvm")


class Checkpointable(Protocol):
    """An iteration that can be saved between two of its steps."""

    def run(self, iterations: int, after_iteration: Callable[[], None]) -> None:
        """Iterate up to this total; call `after_iteration` after each iteration."""

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that the remaining iterations depend on."""

    def progress(self) -> dict[str, Any]:
        """Plain data that the remaining iterations depend on."""

    def load(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Continue from the values of `tensors()` and `progress()`."""


def iterate_with_checkpoints(
    algorithm: Checkpointable,
    iterations: int,
    path: Path | None,
    seconds: float,
    identity: Identity | None = None,
) -> None:
    """Iterate from the checkpoint at `path`, if there is one, and write further ones.

    Where one cannot be written, the iterations go on in memory.

    Args:
        path: of the checkpoint; None writes none.
        seconds: least time between two checkpoints.
        identity: of the run, compared with that of the checkpoint.
    """
    saved, problem, done = time.monotonic(), "", 0
    if path is not None and path.exists():
        tensors, data = checkpoint.read(path, identity)
        data.pop("identity", None)
        with checkpoint.loading(path):
            algorithm.load(tensors, data)

    def after_iteration() -> None:
        nonlocal saved, problem, done
        done += 1
        if path is None or not (interrupted or time.monotonic() - saved >= seconds):
            return
        try:
            if distributed.rank() == 0:
                data = {**algorithm.progress(), "identity": identity}
                save_checkpoint(path, algorithm.tensors(), data)
        except WriteError as error:
            if str(error) != problem:
                logger.warning("No checkpoint: %s Training goes on.", error)
            problem = str(error)
        saved = time.monotonic()
        if interrupted:
            interrupted.end(f"{done} iterations")

    with interrupts.deferred(path is not None) as interrupted:
        algorithm.run(iterations, after_iteration)
