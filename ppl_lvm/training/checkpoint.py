"""Checkpoints from which a training resumes bit for bit.

A checkpoint holds everything that the remaining steps depend on: parameters, buffers, states of
the optimizer and the schedule, random states, history, the best parameters so far, and the reason
why steps are not captured.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ppl_lvm.core.dynamo import without_dynamo
from ppl_lvm.core.errors import DamagedFileError
from ppl_lvm.core.messages import printable, reason_of
from ppl_lvm.core.rng import random_state, set_random_state
from ppl_lvm.core.storage import (
    damaged,
    load_checkpoint,
    pack,
    save_checkpoint,
    strip_prefix,
    unpack,
)
from ppl_lvm.training.identity import Identity, require_same

if TYPE_CHECKING:
    from ppl_lvm.training.loop import Training


OTHER_RUN = "Copy its own files back, or fit again in another directory."


def save(training: "Training", path: Path) -> None:
    """Write a checkpoint to `path` atomically; where it cannot be written, say so."""
    row_changes = training.row_tables.changes()
    tensors, data = _state(training)
    tensors |= {f"tables/{name}": t for name, t in row_changes.items()}

    def write() -> None:
        save_checkpoint(path, tensors, {**data, "identity": training.identity})
        training.row_tables.commit(path, row_changes)

    _attempt(training, write)


def save_together(
    trainings: Sequence["Training"], generators: Sequence[torch.Generator], step: int, path: Path
) -> None:
    """Write one checkpoint of restarts that are trained together, all after step `step`."""
    tensors: dict[str, Tensor] = {}
    states = []
    for r, (training, generator) in enumerate(zip(trainings, generators, strict=True)):
        torch.set_rng_state(generator.get_state())
        part, data = _state(training)
        tensors |= {f"{r}/{name}": tensor for name, tensor in part.items()}
        states.append(data)
    identity = trainings[0].identity
    together = {"restarts": states, "step": step, "identity": identity}
    _attempt(trainings[0], lambda: save_checkpoint(path, tensors, together))


def _attempt(training: "Training", write: Callable[[], None]) -> None:
    """Write; after a failure training goes on in memory, with one line about it."""
    try:
        write()
        training.write_problem = ""
    except OSError as error:
        problem = reason_of(error)
        if problem != training.write_problem:
            training.say(
                f"No checkpoint at step {training.step_number}: {problem} Training goes on."
            )
        training.write_problem = problem


def load_together(
    trainings: Sequence["Training"], path: Path
) -> tuple[int, list[dict[str, Tensor]]]:
    """Set restarts to a state that `save_together` wrote; their step, and random state of each."""
    tensors, data = read(path, trainings[0].identity)
    states = []
    with loading(path):
        for r, (training, part) in enumerate(zip(trainings, data["restarts"], strict=True)):
            restart = strip_prefix(f"{r}/", tensors)
            _set_state(training, restart, part)
            states.append(restart)
        return _count(data["step"]), states


def read(path: Path, identity: Identity | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and data of a checkpoint of the run with this identity.

    Raises:
        ValueError: the file is damaged, or belongs to another run; names the difference.
    """
    tensors, data = load_checkpoint(path)
    if identity is not None and isinstance(stored := data.get("identity"), dict):
        require_same(f"{path} is of another run", identity, stored, OTHER_RUN)
    return tensors, data


def _count(steps: Any) -> int:
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"step {steps!r}")
    return steps


@contextmanager
def loading(path: Path) -> Iterator[None]:
    """The scope in which a training takes the content of a checkpoint.

    Raises:
        DamagedFileError: the content is not that of such a training.
    """
    try:
        yield
    except DamagedFileError:
        raise
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
    ) as error:
        reason = printable(reason_of(error)).removesuffix(".")
        raise damaged(path, f"its content does not fit this run ({reason})") from error


def _state(training: "Training") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and data on which the remaining steps depend, without tables of rows."""
    runner = training.step_runner
    with without_dynamo(Optimizer.state_dict):
        optimizer, tensors = pack("optimizer", runner.optimizer.state_dict())
    schedule: Any = None
    if runner.schedule is not None:
        schedule, schedule_tensors = pack("schedule", runner.schedule.state_dict())
        tensors |= schedule_tensors
    for name, values in training.history.items():
        tensors[f"history/{name}"] = torch.tensor(values, dtype=torch.float64)
    tensors |= {f"best/{name}": tensor for name, tensor in training.best_state.items()}
    tensors |= {f"iterates/{name}": t for name, t in training.iterates.tensors().items()}
    adaptive = training.adaptive
    if adaptive is not None:
        tensors |= {f"adaptive/{name}": t for name, t in adaptive.tensors().items()}
    return {**training.pair.state(), **tensors, **random_state()}, {
        "step": training.step_number,
        "seconds": training.seconds,
        "optimizer": optimizer,
        "schedule": schedule,
        "best_bound": training.best_bound,
        "stalled_evaluations": training.stalled_evaluations,
        "capture_error": runner.capture_error,
        "adaptive": None if adaptive is None else adaptive.state(),
    }


def load(training: "Training", path: Path) -> None:
    """Set a training to the state that `save` wrote to `path`.

    Raises:
        ValueError: the file is damaged, or belongs to another run.
    """
    tensors, data = read(path, training.identity)
    with loading(path):
        _set_state(training, tensors, data)
        training.row_tables.restore(path, strip_prefix("tables/", tensors))
        set_random_state(tensors)


def _set_state(training: "Training", tensors: dict[str, Tensor], data: dict[str, Any]) -> None:
    runner = training.step_runner
    training.pair.load_state(tensors)
    with without_dynamo(Optimizer.load_state_dict):
        runner.optimizer.load_state_dict(unpack(data["optimizer"], tensors))
    if runner.schedule is not None:
        runner.schedule.load_state_dict(unpack(data["schedule"], tensors))
    training.history = {n: tensors[f"history/{n}"].tolist() for n in training.history}
    training.best_state = strip_prefix("best/", tensors)
    training.step_number, training.seconds = _count(data["step"]), float(data["seconds"])
    training.iterates.load(strip_prefix("iterates/", tensors), training.step_number)
    if training.adaptive is not None:
        training.adaptive.load(strip_prefix("adaptive/", tensors), data["adaptive"])
    training.best_bound = data["best_bound"]
    training.stalled_evaluations = data["stalled_evaluations"]
    if data["capture_error"] is not None:
        runner.disable_capture(data["capture_error"])
