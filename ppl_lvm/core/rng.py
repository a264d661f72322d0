"""Random states: capture, restore, preserve, isolate.

Generators are torch's on the CPU and on every device in use, Python's `random`, and NumPy's global
one.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


def generator_states() -> list[Tensor]:
    """States of torch's generators: the CPU's, then those of the devices in use."""
    # Asking an unused device for its state would initialize it.
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *devices]


def restore_generators(states: list[Tensor]) -> None:
    """Set torch's generators to the result of `generator_states`."""
    cpu, *devices = states
    torch.set_rng_state(cpu)
    if devices:
        torch.cuda.set_rng_state_all(devices)


@dataclass(frozen=True)
class RngState:
    """States of all generators.

    Attributes:
        torch: see `generator_states`.
        python: of `random.getstate`.
        numpy: of `np.random.get_state`.
    """

    torch: list[Tensor]
    python: tuple[Any, ...]
    numpy: Any

    @classmethod
    def capture(cls) -> Self:
        """The present states."""
        return cls(generator_states(), random.getstate(), np.random.get_state())

    def restore(self) -> None:
        """Set every generator to these states."""
        restore_generators(self.torch)
        random.setstate(self.python)
        np.random.set_state(self.numpy)

    def to_tensors(self) -> dict[str, Tensor]:
        """The states as tensors by name, for a checkpoint."""
        version, words, gauss = self.python
        name, keys, position, has_gauss, cached = self.numpy
        assert (version, name) == (3, "MT19937")
        cpu, *devices = self.torch
        states = {
            "random/torch": cpu,
            "random/python": torch.tensor(words, dtype=torch.int64),
            "random/python_gauss": torch.tensor(
                float("nan") if gauss is None else gauss, dtype=torch.float64
            ),
            "random/numpy": torch.from_numpy(keys.astype(np.int64)),
            "random/numpy_position": torch.tensor([position, has_gauss], dtype=torch.int64),
            "random/numpy_gauss": torch.tensor(cached, dtype=torch.float64),
        }
        if devices:
            states["random/cuda"] = torch.stack(devices)
        return states

    @classmethod
    def from_tensors(cls, states: Mapping[str, Tensor]) -> Self:
        """Inverse of `to_tensors`; states of devices that this machine lacks are dropped."""
        gauss = states["random/python_gauss"].item()
        python = (3, tuple(states["random/python"].tolist()), None if gauss != gauss else gauss)
        position, has_gauss = states["random/numpy_position"].tolist()
        keys = states["random/numpy"].numpy().astype(np.uint32)
        numpy = ("MT19937", keys, position, has_gauss, states["random/numpy_gauss"].item())
        devices: list[Tensor] = []
        if "random/cuda" in states and torch.cuda.is_available():
            devices = list(states["random/cuda"][: torch.cuda.device_count()])
        return cls([states["random/torch"], *devices], python, numpy)


def random_state() -> dict[str, Tensor]:
    """States of all generators as tensors by name."""
    return RngState.capture().to_tensors()


def set_random_state(states: Mapping[str, Tensor]) -> None:
    """Set every generator to the result of `random_state`."""
    state = RngState.from_tensors(states)
    # A checkpoint may hold fewer devices than there are here.
    for device, device_state in enumerate(state.torch[1:]):
        torch.cuda.set_rng_state(device_state, device)
    RngState(state.torch[:1], state.python, state.numpy).restore()


@contextmanager
def preserve_rng() -> Iterator[None]:
    """Restore the generators of torch, Python and NumPy on leaving.

    Unlike `torch.random.fork_rng`, it does not warn where there are several devices.
    """
    state, on_devices = RngState.capture(), torch.cuda.is_initialized()
    try:
        yield
    finally:
        state.restore()
        if not on_devices:  # a seed set inside also waits for devices that are not in use yet
            torch.cuda.manual_seed_all(torch.initial_seed())


# Offset of the seeds of diagnostics: data simulated under seed 0 and diagnosed under seed 0 must
# not meet the draws that made them.
DIAGNOSTIC_SEED_OFFSET = 0x5EED_0D1A6


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed torch's generators for a diagnostic, and restore all on leaving."""
    with preserve_rng():
        torch.manual_seed(DIAGNOSTIC_SEED_OFFSET + seed)
        yield
