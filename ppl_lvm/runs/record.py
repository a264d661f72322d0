"""The content of run.json."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.core.storage import jsonable
from ppl_lvm.data import Data
from ppl_lvm.posterior.evidence import Evidence
from ppl_lvm.programs.loading import MOVED
from ppl_lvm.training.options import FitOptions, declared

LAYOUT = 2  # of a run directory; directories of ppl_lvm 0.1 have no number

# Options that may differ when a run is resumed: they do not change its result.
FREE_OPTIONS = {f.name for f in declared(FitOptions) if f.metadata["free"]}

# Names in bundled programs of layout 1 -> names in this version.
SETTINGS = {"centre": "center", "centred": "centered"}
STATE_NAMES = {"holes": "has_missing", "say": "heads"}  # parts of "guide/say.0.weight"


def environment_record(
    data: Data, *, train_rows: int, held_out_rows: int = 0, validation: float | None = None
) -> dict[str, Any]:
    """Layout, data, package versions and threads of a run."""
    return {
        "layout": LAYOUT,
        "data": {
            "name": data.name,
            "source": data.source,
            "validation": validation,
            "fingerprint": data.fingerprint(),
            **({} if data.weights is None else {"total_weight": data.total_weight}),
            "tensors": data.num_tensors,
            **({} if data.columns is None else {"columns": data.columns}),
            **({} if data.categories is None else {"categories": data.categories}),
            "train_rows": train_rows,
            "held_out_rows": held_out_rows,
        },
        "versions": {n: version(n) for n in ("ppl_lvm", "torch", "pyro-ppl", "numpy")},
        "threads": torch.get_num_threads(),
    }


def identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that defines the run: equal identities give equal results.

    A bundled program's file changes between versions of this package, so it has no digest here.
    """
    keys = ("model", "guide", "options", "data", "num_restarts", "request")
    parts = {key: record[key] for key in keys if key in record}
    named = ("columns", "categories")  # the fingerprint is of the values
    parts["data"] = {key: value for key, value in record["data"].items() if key not in named}
    for role in ("model", "guide"):
        program = record[role]
        if program is not None and is_bundled(program["address"]):
            parts[role] = {**program, "digest": None, "name": None}
    options = record["options"].items()
    parts["options"] = {k: v for k, v in options if k not in FREE_OPTIONS}
    plain: dict[str, Any] = jsonable(parts)
    return plain


def has_weights(record: Mapping[str, Any]) -> bool:
    """True if the rows of a run had weights."""
    return record["data"].get("total_weight") is not None


def evidence_record(evidence: Evidence, *, of: str, rows: int) -> dict[str, Any]:
    """The log evidence of `rows` rows, nats per row; None where a number is unknown."""
    entries = {**evidence.to_json(), "log_evidence_of": of, "log_evidence_rows": rows}
    plain: dict[str, Any] = jsonable(entries)
    return plain


def dtype_of(record: Mapping[str, Any]) -> torch.dtype | None:
    """The precision of a run's programs, where it is not the default."""
    return torch.float64 if record.get("dtype") == "float64" else None


def is_old_layout(record: Mapping[str, Any]) -> bool:
    """True if ppl_lvm 0.1 wrote the record."""
    return bool(record.get("layout", 1) < LAYOUT)


def is_bundled(address: str | None) -> bool:
    """True if an address names a program of this package."""
    return address is not None and address.startswith("ppl_lvm.")


def files_may_differ(record: Mapping[str, Any]) -> bool:
    """True if another version of this package, with other files, wrote the record."""
    return is_old_layout(record) or record["versions"]["ppl_lvm"] != version("ppl_lvm")


def upgrade_record(record: dict[str, Any]) -> dict[str, Any]:
    """A record of either layout in the terms of this version."""
    if not is_old_layout(record):
        return record
    upgraded = dict(record)
    if "restarts_asked" in upgraded:
        upgraded["num_restarts"] = upgraded.pop("restarts_asked")
    if "iterations" in upgraded["options"]:
        options = dict(upgraded["options"])
        upgraded["options"] = {"max_iterations": options.pop("iterations"), **options}
    for role in ("model", "guide"):
        program = upgraded[role]
        if program is not None and is_bundled(program["address"]):
            settings = {SETTINGS.get(k, k): v for k, v in (program["settings"] or {}).items()}
            address = MOVED.get(program["address"], program["address"])
            upgraded[role] = {**program, "address": address, "settings": settings}
    return upgraded


def upgrade_tensors(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a run of either layout by their names in this version."""
    if not is_old_layout(record):
        return dict(tensors)
    upgraded = {}
    for name, tensor in tensors.items():
        owner, _, path = name.removeprefix("state/").partition("/")
        program = record[owner] if owner in ("model", "guide") else None
        if program is not None and is_bundled(program["address"]):
            parts = [STATE_NAMES.get(part, part) for part in path.split(".")]
            upgraded[f"state/{owner}/{'.'.join(parts)}"] = tensor
        else:
            upgraded[name] = tensor
    return upgraded
