"""The least time a step could take on this machine: its operations, or its bytes.

    floor = max(matrix operations / matrix rate, bytes / bandwidth)

Operations are those of the products of matrices in a step (`torch.utils.flop_counter`); the rate
is the best of products of 1,024 × 1,024 floats. Bytes are what no step can leave out: the batch
read once, parameters and Adam's two moments read and written; the bandwidth is the best of copies
of 256 MB, reading and writing counted. Intermediate results are not counted, as they may stay in
the caches; so the floor of a step without products of matrices is far below any program.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Machine:
    """What the processor was measured to do, with torch's present number of threads."""

    operations: float  # a second, in products of matrices of float32
    bandwidth: float  # bytes a second


def measure(smoke: bool = False) -> Machine:
    """The machine's rates: the best of several short runs each."""
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
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return min(times)


def operations(step: Callable[[], object]) -> int:
    """Floating-point operations of a step's products of matrices."""
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    return int(counter.get_total_flops())


def least_bytes(batch: Sequence[Tensor], parameters: Sequence[Tensor]) -> int:
    """Bytes that a step with Adam must read and write."""
    moved = sum(t.numel() * t.element_size() for t in batch)
    return moved + 6 * sum(p.numel() * p.element_size() for p in parameters)


def floor(machine: Machine, step: int, moved: int) -> float:
    """Seconds that a step takes at least."""
    return max(step / machine.operations, moved / machine.bandwidth)
