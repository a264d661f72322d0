"""Iterations that are written down on the way, and go on from where they were."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ppl_lvm.core import distributed as processes
from ppl_lvm.core.storage import load_checkpoint, save_checkpoint


class Checkpointable(Protocol):
    """What can be written down between two of its iterations."""

    def run(self, iterations: int, after_iteration: Callable[[], None]) -> None:
        """Go on until so many iterations are done in all, calling `after_iteration` after each."""

    def tensors(self) -> dict[str, Tensor]:
        """What the rest depends on."""

    def progress(self) -> dict[str, Any]:
        """The rest of it, as plain data."""

    def load(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Continue from what `tensors` and `progress` said."""


def iterate_with_checkpoints(
    iterated: Checkpointable, iterations: int, path: Path | None, seconds: float
) -> None:
    """Run on from the checkpoint at `path` if there is one, writing others on the way.

    Args:
        path: None writes nothing.
        seconds: at least this long between two checkpoints.
    """
    saved = time.monotonic()
    if path is not None and path.exists():
        iterated.load(*load_checkpoint(path))

    def after_iteration() -> None:
        nonlocal saved
        if path is None or time.monotonic() - saved < seconds:
            return
        if processes.rank() == 0:
            save_checkpoint(path, iterated.tensors(), iterated.progress())
        saved = time.monotonic()

    iterated.run(iterations, after_iteration)
