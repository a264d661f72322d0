"""A training as a file, and back: everything that the rest of a run depends on.

Parameters, buffers, the optimiser's and the schedule's state, the random generators, the history,
the best parameters so far, and whether the engine had to go on eagerly. What a resumed run computes
is then what the run would have computed, bit for bit.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ppl_lvm.core.rng import random_state, set_random_state
from ppl_lvm.core.storage import load_checkpoint, pack, save_checkpoint, unpack

if TYPE_CHECKING:
    from ppl_lvm.training.loop import Training


def save(training: "Training", path: Path) -> None:
    """Write the training to `path`, whole or not at all."""
    stepping = training.stepping
    optimizer, tensors = pack("optimizer", stepping.optimizer.state_dict())
    schedule: Any = None
    if stepping.schedule is not None:
        schedule, more = pack("schedule", stepping.schedule.state_dict())
        tensors |= more
    for name, values in training.history.items():
        tensors[f"history/{name}"] = torch.tensor(values, dtype=torch.float64)
    tensors |= {f"best/{name}": tensor for name, tensor in training.best_state.items()}
    tensors |= {f"iterates/{name}": t for name, t in training.iterates.tensors().items()}
    changed = training.tables.changes()
    tensors |= {f"tables/{name}": t for name, t in changed.items()}
    save_checkpoint(
        path,
        {**training.pair.state(), **tensors, **random_state()},
        {
            "step": training.step_number,
            "seconds": training.seconds,
            "optimizer": optimizer,
            "schedule": schedule,
            "best_bound": training.best_bound,
            "waited": training.waited,
            "capture_error": stepping.capture_error,
        },
    )
    training.tables.commit(path, changed)


def load(training: "Training", path: Path) -> None:
    """Continue where `save` left off."""
    tensors, data = load_checkpoint(path)
    stepping = training.stepping
    training.pair.load_state(tensors)
    stepping.optimizer.load_state_dict(unpack(data["optimizer"], tensors))
    if stepping.schedule is not None:
        stepping.schedule.load_state_dict(unpack(data["schedule"], tensors))
    training.history = {n: tensors[f"history/{n}"].tolist() for n in training.history}
    training.best_state = _named("best/", tensors)
    training.step_number, training.seconds = data["step"], data["seconds"]
    training.iterates.load(_named("iterates/", tensors), training.step_number)
    training.tables.restore(path, _named("tables/", tensors))
    training.best_bound, training.waited = data["best_bound"], data["waited"]
    if data.get("capture_error") is not None:
        stepping.go_eagerly(data["capture_error"])
    set_random_state(tensors)


def _named(start: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
