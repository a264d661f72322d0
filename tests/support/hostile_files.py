"""Files of a run directory with hostile content."""

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from directory_attack import ESCAPE, Attack, edit


def _set(*path: Any, value: Any) -> Callable[[Path, Path], None]:
    return lambda directory, _: edit(directory, *path, value=value)


def _write(name: str, content: bytes) -> Callable[[Path, Path], None]:
    def change(directory: Path, _: Path) -> None:
        (directory / name).write_bytes(content)

    return change


def _tensors(name: str, **entries: Any) -> Callable[[Path, Path], None]:
    """Tensors of a file replaced, or removed by None; a function changes them."""

    def change(directory: Path, _: Path) -> None:
        file = directory / f"{name}.safetensors"
        tensors = load_file(file) if file.exists() else {}
        for key, value in entries.items():
            which = next((k for k in tensors if k.startswith(key)), key)
            tensor = tensors.pop(which, None)
            if value is not None:
                tensors[which] = value(tensor) if callable(value) else value
        save_file({k: t.contiguous() for k, t in tensors.items()}, file, {"data": "{}"})

    return change


def _linked(name: str) -> Callable[[Path, Path], None]:
    def change(directory: Path, _: Path) -> None:
        outside = directory.parent / "secret"
        shutil.copy(directory / name, outside)
        (directory / name).unlink()
        (directory / name).symlink_to(outside)

    return change


def _special(name: str, make: Callable[[Path], None]) -> Callable[[Path, Path], None]:
    def change(directory: Path, _: Path) -> None:
        (directory / name).unlink()
        make(directory / name)

    return change


class _Payload:
    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


FILES = ("run.json", "history.json", "parameters.safetensors")


def file_attacks() -> Iterator[Attack]:
    """Hostile contents of every file of a run."""
    yield from _whole_files()
    yield from _tensor_files()
    yield from _settings()


def _whole_files() -> Iterator[Attack]:
    deep = b"[" * 200_000
    for name in FILES:
        yield Attack(f"{name} is a link", _linked(name))
        yield Attack(f"{name} is a pipe", _special(name, os.mkfifo))
        yield Attack(f"{name} is a folder", _special(name, os.mkdir))
        yield Attack(f"{name} is a device", _special(name, lambda p: p.symlink_to("/dev/zero")))
        yield Attack(f"{name} is a loop", _special(name, lambda p: p.symlink_to(p)))
        yield Attack(f"{name} is missing", _special(name, lambda p: None))
        contents = {"empty": b"", "deep": deep, "no text": b"\xff\xfe\x00", "pickle": b"\x80\x04."}
        contents |= {
            "null": b"null",
            "a list": b"[]",
            "NaN": b'{"bound": [NaN]}',
            "digits": b"9" * 9999,
        }
        contents["a ZIP archive"] = b"PK\x03\x04" + bytes(100)
        contents["a payload"] = pickle.dumps(_Payload())
        contents["a header of 2^63"] = b"\xff" * 7 + b"\x7f" + b"{}"
        for kind, content in contents.items():
            yield Attack(f"{name} is {kind}", _write(name, content))
    history = {
        "a text": b'{"bound": "x"}',
        "short": b'{"bound": [1.0]}',
        "objects": b'{"bound": [{}]}',
    }
    for kind, content in history.items():
        yield Attack(f"history of {kind}", _write("history.json", content))


def _tensor_files() -> Iterator[Attack]:
    zeros, one = torch.zeros(2), torch.ones(1)
    nan = lambda t: torch.full_like(t, torch.nan)  # noqa: E731
    inf = lambda t: torch.full_like(t, torch.inf)  # noqa: E731
    parameters: dict[str, dict[str, Any]] = {
        "NaN": {"state/model": nan},
        "infinite": {"state/model": inf},
        "missing": {"state/model": None},
        "another shape": {"state/model": torch.zeros(3, 3, 3)},
        "complex": {"state/model": lambda t: t.to(torch.complex64)},
        "unknown": {"state/../../x": zeros},
        "an escape": {f"state/{ESCAPE}": zeros},
        "no rows": {"template/0": None},
        "empty rows": {"template/0": torch.zeros(0, 2)},
        "a scalar row": {"template/0": torch.zeros(())},
        "complex rows": {"template/0": lambda t: t.to(torch.complex64)},
        "wide rows": {"template/0": torch.zeros(3, 50)},
        "two tensors of rows": {"template/1": torch.zeros(24, 2)},
    }
    for kind, entries in parameters.items():
        yield Attack(f"parameters: {kind}", _tensors("parameters", **entries))
    for key in (
        "0/__dict__/x",
        "0/__class__",
        "x/bounds",
        "9999999999/bounds",
        "-1/bounds",
        "",
    ):
        change = _tensors("trajectories", **{key or "/": one})
        yield Attack(f"trajectories: {key!r}", change)
    yield Attack(
        "a trajectory of no shape", _tensors("trajectories", **{"0/bounds": torch.ones(())})
    )
    yield Attack("draws that are a pickle", _write("draws.safetensors", pickle.dumps(_Payload())))


def _settings() -> Iterator[Attack]:
    for key, value in {
        "components": 10**13,
        "__class__": 1,
        "self": 1,
        "covariance": "os:system",
        "floor": {"a": 1},
        "observed": [1] * 99,
    }.items():
        yield Attack(f"setting {key}", _set("model", "settings", key, value=value))
    for objective in (
        "IWAE(num_particles=1000000000000)",
        "__import__('os').system('touch canary')",
        "IWAE(num_particles=__import__('os'))",
        "Trace_ELBO.__init__.__globals__",
        "os.system",
        "(" * 10_000,
        "-" * 10_000 + "1",
        "IWAE({[]: 1})",
        "IWAE(num_particles={[]: 1})",
        "SVI()",
        "\x00",
        "",
    ):
        yield Attack(f"objective {objective[:40]!r}", _set("objective", value=objective))
    yield Attack("10^9 steps", _set("results", "steps", value=10**9))
    yield Attack("10^9 tensors", _set("data", "tensors", value=10**9))
