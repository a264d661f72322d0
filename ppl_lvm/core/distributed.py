"""Several processes train one pair: each takes a part of every batch, their gradients are summed.

    torchrun --nproc-per-node 2 -m ppl_lvm fit …

With `torch.distributed`: gloo between CPUs, NCCL between GPUs. The first process writes and speaks.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if count() > 1 else 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun has started, if it has started any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    devices = dist.is_nccl_available() and torch.cuda.device_count() >= here
    if devices:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Both, where there is a GPU for each: a program may be left on the CPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if devices else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def told_to_end() -> Iterator[Callable[[], bool]]:
    """Whether torchrun has told this process to end, as it does when another one has failed.

    Outside torchrun a signal ends a process at once, as ever.
    """
    told: list[int] = []
    if count() == 1 or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        yield lambda: bool(told)
    finally:
        signal.signal(signal.SIGTERM, before)


def mine(rows: Tensor) -> Tensor:
    """This process's part of a batch's rows; one row, to be given no weight, if there is none."""
    part = rows.tensor_split(count())[rank()]
    return part if len(part) else rows[:1]


def weight(rows: int) -> float:
    """The share of this process in a batch of so many rows."""
    shares = [len(part) for part in torch.arange(rows).tensor_split(count())]
    return shares[rank()] / rows


def seed_step(seed: int, step: int) -> None:
    """Other random numbers in each process and step: what they are is no state to be kept."""
    words = np.random.SeedSequence([seed, rank(), step]).generate_state(2)
    torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def summed(tensor: Tensor) -> Tensor:
    """The sum over processes, as an operation that a captured step repeats."""
    ops = torch.ops._c10d_functional
    group: Any = dist.group.WORLD
    total: Tensor = ops.wait_tensor(ops.all_reduce(tensor, "sum", group.group_name))
    return total


def from_first(value: Any) -> Any:
    """What the first process holds."""
    if count() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def by_first(do: Callable[[], T]) -> T | None:
    """Do something in the first process only: its result there, None elsewhere.

    Raises:
        ValueError: in every process, if it does so in the first.
    """
    if count() == 1:
        return do()
    result, failure = None, None
    if rank() == 0:
        try:
            result = do()
        except ValueError as error:
            failure = str(error)
    failure = from_first(failure)
    if failure is not None:
        raise ValueError(failure)
    return result
