"""Run a program without side effects."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.contrib.easyguide import EasyGuide
from torch import Tensor, nn

from ppl_lvm.core.arguments import checked
from ppl_lvm.core.public_calls import exclusive
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.validate import Seed
from ppl_lvm.programs.improper import improper_draws

_depth = 0


def is_dry_run() -> bool:
    """True inside `dry_run`: a program must not change state that it keeps."""
    return _depth > 0


@checked
@contextmanager
def dry_run(*programs: Callable[..., Any], seed: Seed | None = None) -> Iterator[None]:
    """A scope in which `programs` run without side effects.

    On exit the random states of torch (CPU and CUDA), NumPy and Python, Pyro's parameter store, and
    the parameters and buffers (running means) of every program that is an `nn.Module` are restored.
    Inside, `pyro.param` uses a copy of the caller's store. With `seed` the scope starts from that
    seed, so that two runs are equal. Sites with an improper prior have some value of their support.

    Parameters that a module creates in its first run stay. Other state of a program (a Python
    counter, a file) is not restored; the program can call `is_dry_run()`.
    """
    with exclusive("dry_run"):
        yield from _dry_run(programs, seed)


def _dry_run(programs: tuple[Callable[..., Any], ...], seed: int | None) -> Iterator[None]:
    global _depth
    modules = [program for program in programs if isinstance(program, nn.Module)]
    buffers: list[tuple[Tensor, Tensor]] = [
        (buffer, buffer.clone()) for module in modules for buffer in module.buffers()
    ]
    # With Pyro's default settings the store replaces a module's parameters by those of equal names.
    parameters = [(part, dict(part._parameters)) for module in modules for part in module.modules()]
    store = pyro.get_param_store()
    _depth += 1
    try:
        with preserve_rng(), store.scope(state=store.get_state()), improper_draws():
            if seed is not None:
                pyro.set_rng_seed(seed)
            yield
    finally:
        _depth -= 1
        with torch.no_grad():
            for buffer, before in buffers:
                # Only if changed, since writing would invalidate graphs that contain it.
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
        for part, before_run in parameters:
            part._parameters.update(before_run)
            if isinstance(part, EasyGuide):
                part.plates.clear()  # which a failed run leaves, of its number of rows


def check_batch(model: Callable[..., Any], batch: tuple[Any, ...]) -> None:
    """Refuse a batch without rows or values, or of more or fewer tensors than the model takes.

    Raises:
        ValueError: with the remedy.
    """
    if any(isinstance(part, Tensor) and part.dim() and not len(part) for part in batch):
        raise ValueError("signature: the batch has no rows. Pass some typical rows.")
    if any(isinstance(part, Tensor) and part.layout is not torch.strided for part in batch):
        raise ValueError("signature: the batch is a sparse tensor. Pass x.to_dense().")
    if any(type(part) is Tensor and part.is_meta for part in batch):
        raise ValueError("signature: the batch is on the device 'meta', without values. Use a CPU.")
    try:
        taken = inspect.signature(getattr(model, "forward", model))
    except (TypeError, ValueError):  # a callable without a signature
        return
    try:
        taken.bind(*batch)
    except TypeError:
        count = f"{len(batch)} tensor{'s' * (len(batch) != 1)}"
        raise ValueError(
            f"signature: the model takes {taken}, and the batch has {count}. Pass one tensor for "
            "each argument."
        ) from None
