"""Atomic files with checksums, read without executing.

A checkpoint is one safetensors file: tensors by name, everything else as JSON in its header.
One file makes the write atomic: it is written beside its place, synced, then renamed over it,
so a process killed at any moment leaves the old checkpoint or the new one.

A file contains the SHA-256 of its bytes, computed with zeros in the place of the checksum.
"""

import errno
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ppl_lvm.core.errors import DamagedFileError, WriteError
from ppl_lvm.core.types import Array

CHECKSUM = "sha256:"
UNSEALED = CHECKSUM + "0" * 64  # in the place of a checksum while it is computed
NO_ROOM = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
REMEDIES = {
    **{code: f"{reason}. Free some space" for code, reason in NO_ROOM.items()},
    errno.EFBIG: "the file would exceed the size limit. Raise it (ulimit -f)",
    errno.EROFS: "the file system is read-only. Choose another directory",
    errno.EACCES: "writing there is not permitted. Choose another directory",
    errno.EPERM: "writing there is not permitted. Choose another directory",
    errno.ENOENT: "the directory was deleted. Choose another directory",
    errno.ENOTDIR: "a part of the path is a file. Choose another directory",
    errno.EEXIST: "a part of the path is a file. Choose another directory",
}


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the file at `path` by `content`, or leave it as it was.

    Raises:
        WriteError: the file cannot be written; names the path and the reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacement(path) as file:
            file.write(content)
    except OSError as error:
        raise write_error(path, error) from error


def write_parquet(path: Path, parts: Iterable[Mapping[str, Array]]) -> None:
    """Write columns of rows as they come, a row group for each part, like `write_atomic`."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacement(path) as file:
            writer = None
            for part in parts:
                table = pa.table(dict(part))
                writer = writer or ParquetWriter(file, table.schema)
                writer.write_table(table, row_group_size=max(1, len(table)))
            if writer is not None:
                writer.close()
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> WriteError:
    """The error of a file that cannot be written, in one sentence with its remedy."""
    reason = REMEDIES.get(error.errno or 0, f"{error.strerror or error}. Look at the disk")
    stands = " The file before it is unchanged." if os.path.isfile(path) else ""
    return WriteError(error.errno, f"{path} cannot be written: {reason}.{stands}")


@contextmanager
def _replacement(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` where the scope ends without an error."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # a temporary file is its owner's alone
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the rename is on disk when the folder is
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _seal(content: bytes) -> bytes:
    """Content with its checksum in the place of `UNSEALED`."""
    seal = CHECKSUM + hashlib.sha256(content).hexdigest()
    return content.replace(UNSEALED.encode(), seal.encode(), 1)


def _verify(path: Path, content: bytes, seal: Any) -> None:
    """Raise `DamagedFileError` unless `seal` is the checksum of the content that contains it."""
    if isinstance(seal, str) and len(seal) == len(UNSEALED):
        unsealed = content.replace(seal.encode(), UNSEALED.encode(), 1)
        if seal == CHECKSUM + hashlib.sha256(unsealed).hexdigest():
            return
    raise damaged(path, "its content does not have its checksum")


def damaged(path: Path, reason: str) -> DamagedFileError:
    """The error of a file that cannot be used."""
    what = "not a readable checkpoint" if path.suffix == ".safetensors" else "damaged"
    return DamagedFileError(
        f"{path} is {what}: {reason}. Copy the run directory again, or fit again in another "
        "directory."
    )


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON; NaN and infinities become null, which JSON knows."""
    write_atomic(path, (json.dumps(jsonable(data), indent=2) + "\n").encode())


def write_sealed_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` as indented JSON with its checksum as the last entry."""
    entries = {**jsonable(data), "checksum": UNSEALED}
    write_atomic(path, _seal((json.dumps(entries, indent=2) + "\n").encode()))


def verify_sealed_json(path: Path, content: bytes, data: dict[str, Any]) -> dict[str, Any]:
    """The entries of a file without the checksum; one without a checksum is accepted.

    Raises:
        DamagedFileError: the file has changed since it was written.
    """
    last = next(reversed(data.values()), None)
    if "checksum" in data:
        try:
            _verify(path, content, data["checksum"])
        except DamagedFileError as error:
            hint = " If you have edited it, remove its entry checksum."
            raise DamagedFileError(f"{error}{hint}") from None
    elif isinstance(last, str) and last.startswith(CHECKSUM[:3]) and len(last) == len(UNSEALED):
        raise damaged(path, "its entry checksum has another name")
    return {name: value for name, value in data.items() if name != "checksum"}


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
    """Write `tensors` and JSON-able `data` to `path` atomically, with a checksum."""
    # Views into shared memory are refused by the format, and a later step must not change what
    # is being written: clone.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"data": json.dumps(data), "checksum": UNSEALED}
    write_atomic(path, _seal(save(copies, metadata=metadata)))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the data of a checkpoint, from one reading of the file.

    Files of ppl_lvm 0.1 have no checksum.

    Raises:
        DamagedFileError: the file is damaged or is not a checkpoint of this toolkit.
    """
    content = path.read_bytes()
    try:
        (length,) = struct.unpack("<Q", content[:8])
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        if set(metadata) != {"data"}:
            _verify(path, content, metadata.get("checksum"))
        return load(content), json.loads(metadata["data"])
    except DamagedFileError:
        raise
    except (SafetensorError, struct.error, LookupError, ValueError, TypeError) as error:
        raise damaged(path, f"it is cut short or has changed ({error})") from None
    except (AttributeError, RecursionError, OverflowError, MemoryError) as error:
        raise damaged(path, f"it is cut short or has changed ({error})") from None


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
