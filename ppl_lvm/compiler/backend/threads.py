"""A step of small tensors is taken by one thread.

Torch gives no second thread less than 32,768 numbers of an elementwise operation, but batches of
small matrix products and factorisations go to every thread there is. On a quiet machine that gains
nothing; where other work runs, the step waits at each of them until the other threads have had
their turn: a product of 7 microseconds took 16,000.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL = 2**17  # bytes of the largest tensor


@contextmanager
def single_thread_if(small: bool) -> Iterator[None]:
    """Torch with one thread, if what it does is small; with as many as before afterwards."""
    threads = torch.get_num_threads()
    if not small or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
