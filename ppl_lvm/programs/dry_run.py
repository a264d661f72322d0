"""Run a program only to look at it, and leave no trace of having done so."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_lvm.core.rng import preserve_all_rng

_depth = 0


def is_dry_run() -> bool:
    """Whether a `dry_run` is on: what a program keeps for itself is to stay as it is."""
    return _depth > 0


@contextmanager
def dry_run(*programs: Callable[..., Any], seed: int | None = None) -> Iterator[None]:
    """A scope in which `programs` may run without changing anything the caller can see.

    On the way out the random states of torch (CPU and CUDA), NumPy and Python are what they
    were, Pyro's parameter store is the caller's, and so are the parameters and buffers (running
    means and the like) of every program that is an `nn.Module`. Inside, `pyro.param` sees a copy
    of the caller's store. With `seed` the scope starts from that seed, so that two looks see the
    same.

    Parameters that a module makes while it runs for the first time stay: it needs them. What a
    program keeps elsewhere (a Python counter, a file) is out of reach; it may ask `is_dry_run()`.
    """
    global _depth
    modules = [program for program in programs if isinstance(program, nn.Module)]
    buffers: list[tuple[Tensor, Tensor]] = [
        (buffer, buffer.clone()) for module in modules for buffer in module.buffers()
    ]
    # With Pyro's default settings a module takes over a parameter of its own name from the store.
    parameters = [(part, dict(part._parameters)) for module in modules for part in module.modules()]
    store = pyro.get_param_store()
    _depth += 1
    try:
        with preserve_all_rng(), store.scope(state=store.get_state()):
            if seed is not None:
                pyro.set_rng_seed(seed)
            yield
    finally:
        _depth -= 1
        with torch.no_grad():
            for buffer, before in buffers:
                # Writing into one that nobody changed would spoil graphs that hold it.
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
        for part, held in parameters:
            part._parameters.update(held)
