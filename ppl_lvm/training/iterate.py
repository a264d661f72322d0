"""Iterations with checkpoints."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ppl_lvm.core import distributed
from ppl_lvm.core.storage import load_checkpoint, save_checkpoint


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
    algorithm: Checkpointable, iterations: int, path: Path | None, seconds: float
) -> None:
    """Iterate from the checkpoint at `path`, if there is one, and write further ones.

    Args:
        path: of the checkpoint; None writes none.
        seconds: least time between two checkpoints.
    """
    saved = time.monotonic()
    if path is not None and path.exists():
        algorithm.load(*load_checkpoint(path))

    def after_iteration() -> None:
        nonlocal saved
        if path is None or time.monotonic() - saved < seconds:
            return
        if distributed.rank() == 0:
            save_checkpoint(path, algorithm.tensors(), algorithm.progress())
        saved = time.monotonic()

    algorithm.run(iterations, after_iteration)
