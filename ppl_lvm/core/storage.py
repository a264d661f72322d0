"""Atomic files of tensors and plain data, read without executing.

A checkpoint is one safetensors file: tensors by name, everything else as JSON in its header.
One file makes the write atomic: it is written beside its place, synced, then renamed over it,
so a process killed at any moment leaves the old checkpoint or the new one.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the file at `path` by `content`, or leave it as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # a temporary file is its owner's alone
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON; NaN and infinities become null, which JSON knows."""
    write_atomic(path, (json.dumps(jsonable(data), indent=2) + "\n").encode())


def jsonable(data: Any) -> Any:
    """Plain data for JSON: NaN and infinities as None, tensors and tuples as lists."""
    if isinstance(data, Mapping):
        return {str(key): jsonable(value) for key, value in data.items()}
    if isinstance(data, Tensor):
        return jsonable(data.tolist())
    if isinstance(data, list | tuple):
        return [jsonable(value) for value in data]
    if isinstance(data, float) and not np.isfinite(data):
        return None
    return data


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    """Write `tensors` and JSON-able `data` to `path` atomically."""
    # Views into shared memory are refused by the format, and a later step must not change what
    # is being written: clone.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomic(path, save(copies, metadata={"data": json.dumps(data)}))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the data of a checkpoint.

    Raises:
        ValueError: the file is damaged or is not a checkpoint of this toolkit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        return tensors, json.loads(metadata["data"])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a readable checkpoint ({error}). It may have been cut short while it "
            "was copied; copy the run directory again, or start the fit anew."
        ) from None


def strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def pack(prefix: str, value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split a nested state into JSON-able data and tensors by name; `unpack` puts it together.

    Dictionaries keep their keys' types (optimisers count parameters by integers).

    Raises:
        ValueError: a value is neither plain data nor a tensor.
    """
    tensors: dict[str, Tensor] = {}

    def walk(path: str, part: Any) -> Any:
        if isinstance(part, Tensor):
            tensors[path] = part
            return {"tensor": path}
        if isinstance(part, Mapping):
            return {"dict": [[k, walk(f"{path}/{k}", v)] for k, v in part.items()]}
        if isinstance(part, list | tuple):
            return {"list": [walk(f"{path}/{i}", v) for i, v in enumerate(part)]}
        if isinstance(part, np.generic):
            part = part.item()
        if part is None or isinstance(part, bool | int | float | str):
            return part
        raise ValueError(
            f"{path} holds a {type(part).__name__}, which a checkpoint cannot store. Use an "
            "optimiser or schedule whose state is numbers and tensors, or fit without a directory."
        )

    return walk(prefix, value), tensors


def unpack(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nested state that `pack` split."""
    if not isinstance(data, dict):
        return data
    if "tensor" in data:
        return tensors[data["tensor"]].clone()
    if "dict" in data:
        return {key: unpack(value, tensors) for key, value in data["dict"]}
    return [unpack(value, tensors) for value in data["list"]]
