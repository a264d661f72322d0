"""Files of a run directory, read as data of strangers.

A file must be a regular one inside the directory, and its content is checked, so that a damaged or
hostile one is an error of one sentence that names the file and the field.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ppl_lvm.core.errors import DamagedFileError
from ppl_lvm.core.messages import printable, reason_of
from ppl_lvm.core.storage import damaged, file_digest, load_checkpoint, verify_sealed_json
from ppl_lvm.runs.layout import require_fields, require_record
from ppl_lvm.runs.record import upgrade_record
from ppl_lvm.training.trajectory import Trajectory, from_tensors

REMEDY = "Copy the run directory again, or fit again."
FILES = ("parameters.safetensors", "trajectories.safetensors", "draws.safetensors", "history.json")
FOLDERS = ("", "pictures", "restarts")  # where a run is read from and written to


def read_record(directory: str | Path) -> dict[str, Any]:
    """run.json of a run directory, in the terms of this version.

    Raises:
        FileNotFoundError: the directory has no run.json.
        ValueError: run.json is damaged.
    """
    directory = Path(directory)
    if not (directory / "run.json").is_file():
        raise FileNotFoundError(
            f"{directory} is not a run directory: it has no run.json. Pass the directory= of a fit."
        )
    path = run_file(directory, "run.json")
    try:
        record = as_stored(_parse(path))
        if isinstance(record, dict):
            record = upgrade_record(record)
        require_record(record)
    except DamagedFileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {_fault(error)}. {REMEDY}") from None
    return dict(record)


def verify_files(directory: Path, record: Mapping[str, Any]) -> None:
    """Check the files of a run against their checksums in its record.

    Raises:
        ValueError: a file is missing or has changed; names it.
    """
    digests = record.get("files") or {}
    for name in FILES:
        if name in digests and file_digest(run_file(directory, name)) != digests[name]:
            raise damaged(directory / name, "its content does not have the checksum in run.json")


def as_stored(record: Any) -> Any:
    """A record as reading its file gives it, without the control characters that it may hold.

    Settings, options and the arguments of `load_data` keep theirs: they are no text to print.
    """

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return printable(value)
        if isinstance(value, list):
            return [walk(each) for each in value]
        if isinstance(value, dict):
            return {
                printable(key): each if key in ("settings", "options", "source") else walk(each)
                for key, each in value.items()
            }
        return value

    return walk(json.loads(json.dumps(record)))


def read_history(directory: Path, series: str, steps: int) -> dict[str, list[Any]]:
    """history.json, with a value of `series` for each of the steps.

    Monte-Carlo EM has a value of "complete" for each instead, and `series` is of its guide.

    Raises:
        ValueError: the file is missing or damaged.
    """
    path = run_file(directory, "history.json")
    try:
        history = _parse(path)
        require_fields(history, dict[str, list[float | None]], "")
        count = len(history.get("complete", history[series]))
        if count != steps:
            raise ValueError(
                f"{series} has {count} values, and results.steps in run.json is {steps}."
            )
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {_fault(error)}. {REMEDY}") from None
    return dict(history)


def read_tensors(directory: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a file of the directory.

    Raises:
        ValueError: the file is missing or damaged, or a tensor is not of real numbers.
    """
    path = run_file(directory, f"{name}.safetensors")
    try:
        tensors, _ = load_checkpoint(path)
    except (RecursionError, TypeError, OSError) as error:
        raise ValueError(f"{path} is damaged: {_fault(error)}. {REMEDY}") from None
    for key, tensor in tensors.items():
        if printable(key) != key or tensor.is_complex():
            raise ValueError(
                f"{path} is damaged: {printable(key)!r} is not the name of a tensor of real "
                f"numbers. {REMEDY}"
            )
    return tensors


def optional_tensors(directory: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a file that a run may lack."""
    is_there = (directory / f"{name}.safetensors").exists()
    return read_tensors(directory, name) if is_there else {}


def read_trajectories(directory: Path) -> list[Trajectory]:
    """The trajectories of the restarts, in a file that a run may lack."""
    for name in ("trajectories", "trails"):  # "trails" of ppl_lvm 0.1
        if tensors := optional_tensors(directory, name):
            try:
                return from_tensors(tensors)
            except ValueError as error:
                path = directory / f"{name}.safetensors"
                raise ValueError(f"{path} is damaged: {_fault(error)}. {REMEDY}") from None
    return []


def template_rows(directory: Path, tensors: Mapping[str, Tensor], count: int) -> tuple[Tensor, ...]:
    """The example rows among the tensors of parameters.safetensors."""
    names = [name for name in tensors if name.startswith("template/")]
    if len(names) != count or any(f"template/{i}" not in tensors for i in range(min(count, 99))):
        raise ValueError(
            f"{directory}/parameters.safetensors is damaged: it has {len(names)} tensors of "
            f"example rows, and data.tensors in run.json is {count}. {REMEDY}"
        )
    template = tuple(tensors[f"template/{i}"] for i in range(count))
    if any(t.dim() == 0 or not len(t) or len(t) != len(template[0]) for t in template):
        raise ValueError(
            f"{directory}/parameters.safetensors is damaged: its example rows have the shapes "
            f"{', '.join(str(tuple(t.shape)) for t in template)}. {REMEDY}"
        )
    return template


def require_finite(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` for a parameter with a number that is NaN or infinite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not (finite := tensor.isfinite()).all():
            raise ValueError(
                f"{directory}/parameters.safetensors: {name} has {int((~finite).sum())} of "
                f"{tensor.numel()} numbers that are NaN or infinite. {REMEDY}"
            )


def run_file(directory: Path, name: str) -> Path:
    """The path of a file of a run.

    Raises:
        ValueError: it is missing, no regular file, or a link out of the directory.
    """
    path = directory / name
    _refuse_link(directory, path)
    if not path.is_file():
        raise ValueError(f"{path} is missing, or is no regular file. {REMEDY}")
    return path


def refuse_links(directory: Path) -> None:
    """Raise for links out of the directory, pipes and devices where a run is continued."""
    for folder in FOLDERS:
        _refuse_link(directory, directory / folder)
        for path in (directory / folder).glob("*.*"):
            _refuse_link(directory, path)
            if not path.is_file():
                raise ValueError(f"{path} is no regular file. {REMEDY}")


def _refuse_link(directory: Path, path: Path) -> None:
    try:
        inside = path.resolve().is_relative_to(directory.resolve())
    except (OSError, RuntimeError):  # a loop
        inside = False
    if not inside:
        raise ValueError(
            f"{path} is a link out of the run directory. Put the file itself into the directory."
        )


def _parse(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is no JSON, too deep, or has a number that JSON does not know.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"it holds {constant}, which is no number of JSON.")

    try:
        content = path.read_bytes()
        data = json.loads(content.decode(), parse_constant=refuse)
        sealed = path.name == "run.json" and isinstance(data, dict)
        return verify_sealed_json(path, content, data) if sealed else data
    except RecursionError:
        raise ValueError("its brackets are nested too deeply.") from None


def _fault(error: Exception) -> str:
    """The reason of an error, without the full stop."""
    return printable(reason_of(error)).removesuffix(".")
