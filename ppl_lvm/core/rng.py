"""Torch's random number generators: where they stand, and leaving them there."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def generator_states() -> list[Tensor]:
    """Where torch's generators stand: the CPU's, then those of the devices, if they are in use."""
    # To ask a device that nobody uses would set it up.
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *devices]


def restore_generators(states: list[Tensor]) -> None:
    """Set torch's generators to what `generator_states` read."""
    cpu, *devices = states
    torch.set_rng_state(cpu)
    if devices:
        torch.cuda.set_rng_state_all(devices)


@contextmanager
def preserve_rng() -> Iterator[None]:
    """Draw and seed at will: afterwards torch's generators stand where they stood.

    As `torch.random.fork_rng`, which warns where there are several devices.
    """
    states = generator_states()
    try:
        yield
    finally:
        restore_generators(states)
