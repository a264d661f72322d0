"""Checkpoint files: atomic writes, round trips, damaged files."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_lvm.core.rng import random_state, set_random_state
from ppl_lvm.core.storage import (
    load_checkpoint,
    pack,
    save_checkpoint,
    unpack,
    write_atomic,
    write_json,
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "c.safetensors"
    tensors = {"a/b": torch.randn(3, 2).T, "empty": torch.empty(0), "n": torch.tensor(3)}
    save_checkpoint(path, tensors, {"step": 3, "bound": -1.2345678901234567, "inf": -np.inf})
    loaded, data = load_checkpoint(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[n], tensors[n]) for n in tensors)
    assert data == {"step": 3, "bound": -1.2345678901234567, "inf": -np.inf}


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_cut_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.zeros(100)}, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"c\.safetensors is not a readable checkpoint"):
        load_checkpoint(path)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [float("nan"), 1.5]})
    assert "NaN" not in (tmp_path / "a.json").read_text()


def test_every_random_generator_continues() -> None:
    random.gauss(0, 1)
    np.random.standard_normal()
    state = random_state()
    first = (torch.rand(2).tolist(), random.gauss(0, 1), np.random.standard_normal(3).tolist())
    set_random_state(state)
    again = (torch.rand(2).tolist(), random.gauss(0, 1), np.random.standard_normal(3).tolist())
    assert first == again


@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop", "LBFGS", "Rprop"])
def test_optimizer_state_round_trip(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))

    def make() -> torch.optim.Optimizer:
        return getattr(torch.optim, name)([parameter], lr=0.1)

    def step(optimizer: torch.optim.Optimizer) -> None:
        def closure() -> float:
            optimizer.zero_grad()
            loss = (parameter**2).sum()
            loss.backward()
            return float(loss.detach())

        optimizer.step(closure)

    before = make()
    step(before)
    saved = parameter.detach().clone()
    data, tensors = pack("optimizer", before.state_dict())
    tensors = {n: t.clone() for n, t in tensors.items()}
    step(before)
    expected = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(saved)
    after = make()
    after.load_state_dict(unpack(data, tensors))
    step(after)
    assert torch.equal(parameter.detach(), expected)


def test_a_state_that_cannot_be_stored_is_named() -> None:
    with pytest.raises(ValueError, match="schedule/f holds a function"):
        pack("schedule", {"f": lambda: 1})
