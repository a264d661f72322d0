"""Data-parallel training under torchrun, with `torch.distributed`.

    torchrun --nproc-per-node 2 -m ppl_lvm fit …

Each process takes a part of every batch, and gradients are summed: by gloo between CPUs, by NCCL
between GPUs. The process of rank 0 writes files and prints.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes of torchrun, if it started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    use_devices = dist.is_nccl_available() and torch.cuda.device_count() >= local_size
    if use_devices:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Both backends where each process has a GPU: a program may stay on the CPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if use_devices else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_rows(rows: Tensor) -> Tensor:
    """This process's part of a batch; one row with weight 0 if its part is empty."""
    part = rows.tensor_split(world_size())[rank()]
    return part if len(part) else rows[:1]


def local_range(rows: int) -> tuple[int, int]:
    """First and last + 1 of this process's part of consecutive rows, as by `local_rows`."""
    quotient, rest = divmod(rows, world_size())
    start = rank() * quotient + min(rank(), rest)
    stop = start + quotient + (rank() < rest)
    return (start, stop) if stop > start else (0, 1)


def local_weight(rows: int) -> float:
    """Share of this process in a batch of so many rows."""
    quotient, rest = divmod(rows, world_size())
    return (quotient + (rank() < rest)) / rows


def seed_step(seed: int, step: int) -> None:
    """Seed torch differently in each process and step, without state to be checkpointed."""
    words = np.random.SeedSequence([seed, rank(), step]).generate_state(2)
    torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over processes, as an operation that a captured step replays."""
    ops = torch.ops._c10d_functional
    group: Any = dist.group.WORLD
    total: Tensor = ops.wait_tensor(ops.all_reduce(tensor, "sum", group.group_name))
    return total


def broadcast_from_first(value: Any) -> Any:
    """The value of rank 0, in every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def run_on_first(function: Callable[[], T]) -> T | None:
    """Call a function in rank 0 only: its result there, None in other processes.

    Raises:
        ValueError: in every process, if the function raises one.
    """
    if world_size() == 1:
        return function()
    result, failure = None, None
    if rank() == 0:
        try:
            result = function()
        except ValueError as error:
            failure = str(error)
    failure = broadcast_from_first(failure)
    if failure is not None:
        raise ValueError(failure)
    return result
