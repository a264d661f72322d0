"""Checkpoints from which a training resumes bit for bit.

A checkpoint holds everything that the remaining steps depend on: parameters, buffers, states of
the optimizer and the schedule, random states, history, the best parameters so far, and the reason
why steps are not captured.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ppl_lvm.core.rng import random_state, set_random_state
from ppl_lvm.core.storage import load_checkpoint, pack, save_checkpoint, strip_prefix, unpack

if TYPE_CHECKING:
    from ppl_lvm.training.loop import Training


def save(training: "Training", path: Path) -> None:
    """Write a checkpoint to `path` atomically."""
    runner = training.step_runner
    optimizer, tensors = pack("optimizer", runner.optimizer.state_dict())
    schedule: Any = None
    if runner.schedule is not None:
        schedule, schedule_tensors = pack("schedule", runner.schedule.state_dict())
        tensors |= schedule_tensors
    for name, values in training.history.items():
        tensors[f"history/{name}"] = torch.tensor(values, dtype=torch.float64)
    tensors |= {f"best/{name}": tensor for name, tensor in training.best_state.items()}
    tensors |= {f"iterates/{name}": t for name, t in training.iterates.tensors().items()}
    row_changes = training.row_tables.changes()
    tensors |= {f"tables/{name}": t for name, t in row_changes.items()}
    save_checkpoint(
        path,
        {**training.pair.state(), **tensors, **random_state()},
        {
            "step": training.step_number,
            "seconds": training.seconds,
            "optimizer": optimizer,
            "schedule": schedule,
            "best_bound": training.best_bound,
            "stalled_evaluations": training.stalled_evaluations,
            "capture_error": runner.capture_error,
        },
    )
    training.row_tables.commit(path, row_changes)


def load(training: "Training", path: Path) -> None:
    """Set a training to the state that `save` wrote to `path`."""
    tensors, data = load_checkpoint(path)
    runner = training.step_runner
    training.pair.load_state(tensors)
    runner.optimizer.load_state_dict(unpack(data["optimizer"], tensors))
    if runner.schedule is not None:
        runner.schedule.load_state_dict(unpack(data["schedule"], tensors))
    training.history = {n: tensors[f"history/{n}"].tolist() for n in training.history}
    training.best_state = strip_prefix("best/", tensors)
    training.step_number, training.seconds = data["step"], data["seconds"]
    training.iterates.load(strip_prefix("iterates/", tensors), training.step_number)
    training.row_tables.restore(path, strip_prefix("tables/", tensors))
    training.best_bound = data["best_bound"]
    training.stalled_evaluations = data["stalled_evaluations"]
    if data["capture_error"] is not None:
        runner.disable_capture(data["capture_error"])
    set_random_state(tensors)
