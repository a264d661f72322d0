"""Roofline: the least time of a step on this machine.

    floor = max(matrix operations / matrix rate, bytes / bandwidth)

Operations are those of matrix products (`torch.utils.flop_counter`); the rate is the best of
products of 1,024 × 1,024 floats. Bytes are the least traffic: the batch read once, parameters and
Adam's two moments read and written; the bandwidth is the best of copies of 256 MB, reads and writes
counted. Intermediate results are not counted, as they may stay in caches, so the floor of a step
without matrix products is far below any program.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Machine:
    """Measured rates of the processor with the current number of threads."""

    operations: float  # per second, in float32 matrix products
    bandwidth: float  # bytes per second


def measure(smoke: bool = False) -> Machine:
    """Measure the rates: the best of several short runs."""
    side, numbers = (256, 2**20) if smoke else (1024, 2**26)
    a, b = torch.randn(side, side), torch.randn(side, side)
    source, target = torch.randn(numbers), torch.empty(numbers)
    out = torch.empty(side, side)
    product = _best(lambda: torch.mm(a, b, out=out))
    copy = _best(lambda: target.copy_(source))
    return Machine(2 * side**3 / product, 2 * 4 * numbers / copy)


def _best(function: Callable[[], object], tries: int = 7) -> float:
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def operations(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products of a step."""
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    return int(counter.get_total_flops())


def least_bytes(batch: Sequence[Tensor], parameters: Sequence[Tensor]) -> int:
    """Bytes that a step with Adam reads and writes at least."""
    moved = sum(t.numel() * t.element_size() for t in batch)
    return moved + 6 * sum(p.numel() * p.element_size() for p in parameters)


def floor(machine: Machine, step: int, moved: int) -> float:
    """Least seconds of a step."""
    return max(step / machine.operations, moved / machine.bandwidth)
