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
    log: Callable[[dict[str, Any]], Any] | None = None,
) -> None:
    """Iterate from the checkpoint at `path`, if there is one, and write further ones.

    Where one cannot be written, the iterations go on in memory.

    Args:
        path: of the checkpoint; None writes none.
        seconds: least time between two checkpoints.
        identity: of the run, compared with that of the checkpoint.
        log: called with the numbers of every iteration.
    """
    begun = time.monotonic()
    saved, problem, done = time.monotonic(), "", 0
    if path is not None and path.exists():
        tensors, data = checkpoint.read(path, identity)
        data.pop("identity", None)
        with checkpoint.loading(path):
            algorithm.load(tensors, data)

    def after_iteration() -> None:
        nonlocal saved, problem, done
        done += 1
        if log is not None and distributed.rank() == 0:
            log({**latest(algorithm), "seconds": time.monotonic() - begun})
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


def latest(algorithm: Any) -> dict[str, Any]:
    """Step and last numbers of an algorithm; of several restarts those of the best."""
    history: dict[str, list[float]] = getattr(algorithm, "history", {})
    if history:
        steps = max(map(len, history.values()))
        return {"step": steps, **{name: values[-1] for name, values in history.items() if values}}
    entry: dict[str, Any] = {"step": max(map(len, algorithm.bounds))}
    for name, bounds in (
        ("bound", algorithm.bounds),
        ("validation_bound", algorithm.held_out_bounds),
    ):
        if last := [values[-1] for values in bounds if values]:
            entry[name] = max(last)
    return entry
