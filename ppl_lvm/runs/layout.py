"""The fields of run.json and history.json, and their check.

`TypedDict`s describe the files; `require_fields` compares a file with them. Further fields are
allowed in results, options and data, whose entries depend on the algorithm and the version.
"""

import math
import types
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, Union, get_args, get_origin, get_type_hints

MAX_NUMBER = 2**63  # of a whole number


class ProgramRecord(TypedDict):
    """See `ppl_lvm.programs.sources.ProgramSpec`."""

    name: str
    address: str | None
    settings: dict[str, Any] | None
    builder: bool
    digest: str | None


class SourceRecord(TypedDict):
    """Arguments of `load_data`."""

    source: str
    columns: NotRequired[list[str | int] | None]
    labels: NotRequired[str | int | None]
    missing: NotRequired[str]
    header: NotRequired[bool | None]
    image_shape: NotRequired[list[int] | None]
    one_sequence: NotRequired[bool]
    exposure: NotRequired[str]
    shuffle_buffer: NotRequired[int]
    weights: NotRequired[str]


class DataRecord(TypedDict):
    """The data of a run."""

    name: str
    source: SourceRecord | None
    validation: float | None
    fingerprint: str
    tensors: int
    train_rows: int
    held_out_rows: int
    total_weight: NotRequired[float]
    columns: NotRequired[list[str]]
    categories: NotRequired[dict[str, list[str]]]


class Versions(TypedDict):
    """Versions of packages."""

    ppl_lvm: str


class RestartRecord(TypedDict):
    """The result of one restart."""

    seed: int
    steps: int
    seconds: float
    bound: float | None
    bound_monte_carlo_error: float | None
    held_out: float | None
    held_out_monte_carlo_error: float | None
    degenerate: str | None
    engine: NotRequired[str]
    initial_bound: NotRequired[float | None]
    converged: NotRequired[bool | None]
    predicted_gain: NotRequired[float | None]
    remedy: NotRequired[str]
    chosen: NotRequired[bool]


class Results(RestartRecord):
    """The results of the chosen restart."""

    directory: str | None
    log_evidence: float | None
    log_evidence_standard_error: float | None
    log_evidence_monte_carlo_error: float | None
    log_evidence_of: str
    log_evidence_kind: NotRequired[str]
    log_evidence_ess: NotRequired[float | None]
    log_evidence_k_hat: NotRequired[float | None]
    log_evidence_share_of_high_k_hat: NotRequired[float | None]
    log_evidence_row_by_row: NotRequired[float | None]
    log_evidence_draws: NotRequired[int]
    log_evidence_rows: NotRequired[int]
    num_particles: NotRequired[int]
    not_computed: NotRequired[dict[str, str]]


class AdversarialResults(TypedDict):
    """The results of an adversarial run."""

    directory: str | None
    seed: int
    steps: int
    seconds: float
    jensen_shannon: float | None
    accuracy: float | None
    p_value: float | None
    two_sample_of: str
    not_computed: NotRequired[dict[str, str]]


class Record(TypedDict):
    """The content of run.json."""

    model: ProgramRecord
    guide: ProgramRecord | None
    objective: str | None
    options: dict[str, Any]
    num_restarts: int
    data: DataRecord
    versions: Versions
    results: dict[str, Any] | None
    layout: NotRequired[int]
    threads: NotRequired[int]
    restarts: NotRequired[list[RestartRecord]]
    algorithm: NotRequired[str]
    discriminator: NotRequired[str | None]
    evaluated: NotRequired[bool]


# These may have further entries.
OPEN = (DataRecord, Versions, RestartRecord, Results, AdversarialResults, Record)


def require_record(record: Any) -> None:
    """Raise `ValueError` unless `record` has the fields of a run.json, with the field's name."""
    require_fields(record, Record, "")
    results = record["results"]
    if results is not None:
        kind = AdversarialResults if record["guide"] is None else Results
        require_fields(results, kind, "results")
        if kind is Results and not record.get("restarts"):
            raise ValueError("restarts is missing.")
        if kind is Results and not isinstance(record["objective"], str):
            raise ValueError("objective is missing.")
    for name in ("train_rows", "tensors"):
        if record["data"][name] < 1:
            raise ValueError(f"data.{name} is {record['data'][name]}, and a run has at least 1.")


def require_fields(value: Any, kind: Any, name: str) -> None:
    """Raise `ValueError` with the name of the first field that is not of its kind."""
    problem = _problem(value, kind, name)
    if problem:
        raise ValueError(problem)


def _problem(value: Any, kind: Any, name: str) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return ""
    if origin in (Union, types.UnionType):
        problems = [_problem(value, each, name) for each in arguments]
        return "" if "" in problems else max(problems, key=lambda p: not p.startswith(f"{name} "))
    if isinstance(kind, type) and hasattr(kind, "__required_keys__"):
        return _fields_problem(value, kind, name)
    if origin is dict and isinstance(value, dict):
        entries = ((f"{name}.{key}" if name else key, each) for key, each in value.items())
        return next((p for n, each in entries if (p := _problem(each, arguments[1], n))), "")
    if origin is list and isinstance(value, list):
        entries = ((f"{name}[{i}]", each) for i, each in enumerate(value))
        return next((p for n, each in entries if (p := _problem(each, arguments[0], n))), "")
    if _is_a(value, kind):
        return ""
    return f"{name or 'the file'} must be {_WORDS[origin or kind]}, got {str(value)[:50]!r}."


def _fields_problem(value: Any, kind: Any, name: str) -> str:
    """The first missing, unknown or wrong field of a dictionary."""
    if not isinstance(value, dict):
        return f"{name or 'the file'} must be a dictionary, got {str(value)[:50]!r}."
    dot = f"{name}." if name else ""
    if missing := sorted(kind.__required_keys__ - value.keys()):
        return f"{dot}{missing[0]} is missing."
    hints = get_type_hints(kind)
    if kind not in OPEN and (unknown := sorted(value.keys() - hints.keys())):
        return f"{dot}{unknown[0]} is unknown."
    entries = ((key, each) for key, each in value.items() if key in hints)
    return next((p for k, each in entries if (p := _problem(each, hints[k], dot + k))), "")


def _is_a(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool) and _is_finite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER
    return isinstance(kind, type) and isinstance(value, kind)


def _is_finite(value: float) -> bool:
    return abs(value) < MAX_NUMBER if isinstance(value, int) else math.isfinite(value)


_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number of at least 0",
    float: "a finite number",
    str: "a text",
    dict: "a dictionary",
    list: "a list",
    type(None): "null",
}
