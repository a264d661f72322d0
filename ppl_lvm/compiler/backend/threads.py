"""Single-threaded execution of steps of small tensors.

Torch splits an elementwise operation among threads from 32,768 numbers on, but it gives batches of
small matrix products and factorizations to every thread. On an idle machine that gains nothing. On
a busy one the step waits at each of them until the other threads are scheduled: a product of 7
microseconds took 16,000. `graph.ir.SMALL` is the limit.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def single_thread_if(small: bool) -> Iterator[None]:
    """Run torch with one thread if the tensors are small; restore the number afterwards."""
    threads = torch.get_num_threads()
    if not small or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
