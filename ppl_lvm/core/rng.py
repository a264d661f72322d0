"""Torch's random number generators: where they stand, and leaving them there."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
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


# A person who simulates data under seed 0 and diagnoses under seed 0 would give both the same
# numbers, and the draws of q would be those that made the data.
DISTANT = 0x5EED_0D1A6


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Inside, torch draws from a stream that `seed` settles; the caller's goes on untouched."""
    with preserve_rng():
        torch.manual_seed(DISTANT + seed)
        yield


def random_state() -> dict[str, Tensor]:
    """The state of every random generator that a program may draw from, as tensors."""
    version, words, gauss = random.getstate()
    state_of_numpy: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = state_of_numpy
    assert (version, name) == (3, "MT19937")
    state = {
        "random/torch": torch.get_rng_state(),
        "random/python": torch.tensor(words, dtype=torch.int64),
        "random/python_gauss": torch.tensor(
            float("nan") if gauss is None else gauss, dtype=torch.float64
        ),
        "random/numpy": torch.from_numpy(keys.astype(np.int64)),
        "random/numpy_position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "random/numpy_gauss": torch.tensor(cached, dtype=torch.float64),
    }
    devices = generator_states()[1:]
    if devices:
        state["random/cuda"] = torch.stack(devices)
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Put every generator back to `state`, as `random_state` returned it."""
    torch.set_rng_state(state["random/torch"])
    gauss = state["random/python_gauss"].item()
    random.setstate((3, tuple(state["random/python"].tolist()), None if gauss != gauss else gauss))
    position, has_gauss = state["random/numpy_position"].tolist()
    keys = state["random/numpy"].numpy().astype(np.uint32)
    cached = state["random/numpy_gauss"].item()
    np.random.set_state(("MT19937", keys, position, has_gauss, cached))
    if "random/cuda" in state and torch.cuda.is_available():
        for device, of_it in enumerate(state["random/cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(of_it, device)
