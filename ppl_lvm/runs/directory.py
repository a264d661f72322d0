"""Run directories: save, load and resume.

    run.json                    what was run (addresses, settings, seed, versions, data) and results
    parameters.safetensors      parameters, and some rows of the data as a template
    trajectories.safetensors    parameters along each restart, for the diagnostics
    draws.safetensors           a chain from the training rows' posterior, where the fit drew one
    history.json                bound at every step, validation bound at every evaluation
    checkpoint.safetensors      everything that `resume` needs
    pictures/                   training curve and figures of the model

Loading runs nothing that lies in the directory, and no program that it names unless the program is
one of `ppl_lvm` or the caller trusts it; see `ppl_lvm.programs.trust`.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor

from ppl_lvm.core.errors import ArgumentError, DamagedFileError
from ppl_lvm.core.messages import reason_of
from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.storage import file_digest, save_checkpoint, write_json, write_sealed_json
from ppl_lvm.core.validate import Objective, ProgramSource
from ppl_lvm.estimators.objectives import objective as make_objective
from ppl_lvm.estimators.objectives import rebuild
from ppl_lvm.nn.units import RealInUnits
from ppl_lvm.programs.loading import source_digest
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.precision import default_dtype
from ppl_lvm.programs.sources import ProgramSpec, instantiate_from_record
from ppl_lvm.programs.trust import Trust, UntrustedError
from ppl_lvm.runs.files import (
    FILES,
    REMEDY,
    as_stored,
    optional_tensors,
    read_history,
    read_record,
    read_tensors,
    read_trajectories,
    refuse_links,
    require_finite,
    template_rows,
    verify_files,
)
from ppl_lvm.runs.record import (
    dtype_of,
    files_may_differ,
    identity,
    is_bundled,
    is_old_layout,
    upgrade_tensors,
)
from ppl_lvm.runs.run import Run
from ppl_lvm.training.identity import require_same
from ppl_lvm.training.trajectory import to_tensors


def save_run(run: Run, directory: Path) -> None:
    """Write `run` to `directory`."""
    run.directory = directory
    template = {f"template/{i}": t for i, t in enumerate(run.example_rows)}
    tensors = {**run.pair.state(), **template}
    save_checkpoint(directory / "parameters.safetensors", tensors, {})
    save_checkpoint(directory / "trajectories.safetensors", to_tensors(run.trajectories), {})
    if run.draws:
        save_checkpoint(directory / "draws.safetensors", run.draws, {})
    write_json(directory / "history.json", run.history)
    write_record(directory, run.record)


def write_record(directory: Path, record: dict[str, Any]) -> None:
    """Write run.json with its checksum, and those of the other files of a finished run."""
    names = [name for name in FILES if (directory / name).is_file()]
    finished = record["results"] is not None
    digests = {name: file_digest(directory / name) for name in names} if finished else {}
    write_sealed_json(directory / "run.json", {**record, "files": digests})


@public_call
def load_run(
    directory: str | Path,
    *,
    trust: bool | Sequence[str] = False,
    model: ProgramSource | None = None,
    guide: ProgramSource | None = None,
    objective: Objective | None = None,
) -> Run:
    """Load a run from its directory.

    The programs are found by the addresses in run.json and built with the settings there. A program
    of ppl_lvm, of Pyro's autoguides or fitted in this process needs nothing else.

    Args:
        directory: the run directory.
        trust: packages whose programs may be imported, trust=["mypackage"]; or True for programs
            anywhere outside of the directory, as long as their files have not changed since the
            fit. Loading runs them.
        model, guide: the programs, instead of those that run.json names: where they have no
            address (defined in a function or at a prompt), have changed, or are not to be imported.
        objective: the objective, if its settings are no literals.

    Raises:
        FileNotFoundError: the directory is no run directory.
        UntrustedError: a program is not trusted; a `ValueError`.
        ValueError: the run is damaged or unfinished, or its programs cannot be built again.
    """
    directory = Path(directory)
    record = read_record(directory)
    if record["guide"] is None:
        raise ValueError(
            f"{directory} holds an adversarial run of {record['model']['name']}, a model without "
            "a likelihood. Open it with ppl_lvm.runs.adversarial.load_adversaries(directory)."
        )
    if record["results"] is None:
        raise ValueError(f"The run in {directory} has not finished. Continue it with resume=True.")
    verify_files(directory, record)
    tensors = read_tensors(directory, "parameters")
    template = template_rows(directory, tensors, record["data"]["tensors"])
    history = read_history(directory, "bound", record["results"]["steps"])
    trajectories = read_trajectories(directory)
    draws = optional_tensors(directory, "draws")
    allowed = Trust.of(trust, directory)
    try:
        programs = model, guide, objective
        with default_dtype(dtype_of(record)):
            tensors = upgrade_tensors(record, tensors)
            pair = _rebuild_pair(record, template, tensors, allowed, *programs)
    except UntrustedError:
        raise
    except (ValueError, ImportError, TypeError) as error:
        if not files_may_differ(record):
            if isinstance(error, ArgumentError) and programs == (None, None, None):
                raise DamagedFileError(
                    f"{directory}/run.json is damaged: {error} {REMEDY}"
                ) from error
            raise
        writer = record["versions"]["ppl_lvm"]
        raise ValueError(
            f"{directory} was written by ppl_lvm {writer}, and this version cannot load it: "
            f"{error} Load it with ppl_lvm {writer}, or pass model= and guide=."
        ) from error
    return Run(
        pair,
        template,
        history,
        record,
        directory=directory,
        trajectories=trajectories,
        draws=draws,
    )


def _rebuild_pair(
    record: dict[str, Any],
    template: tuple[Tensor, ...],
    tensors: dict[str, Tensor],
    trust: Trust,
    model: Any,
    guide: Any,
    objective: Any,
) -> ModelGuidePair:
    """The fitted pair of a record; `model`, `guide` and `objective` replace its texts."""
    specs = {role: ProgramSpec(**record[role]) for role in ("model", "guide")}
    for role, program in (("model", model), ("guide", guide)):
        spec = specs[role]
        # Files of this package change between its versions.
        other_version = is_bundled(spec.address) and files_may_differ(record)
        if program is not None or other_version or not spec.digest or not trust.lists(spec.address):
            continue
        digest = source_digest(spec.address)
        if digest is not None and spec.digest != digest:  # a missing file is an error below
            warnings.warn(
                f"{spec.address} has changed since the run was made. Its {role} may differ from "
                "the fitted one.",
                stacklevel=3,
            )
    build = partial(instantiate_from_record, trust=trust)
    try:
        model = build(specs["model"], model, template, what="model")
        guide = build(specs["guide"], guide, template, what="guide", model=model)
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        raise ValueError(
            f"{specs['model'].name}, {specs['guide'].name}: they cannot be built with the settings "
            f"in run.json: {reason_of(error)}. Pass the programs that were fitted: "
            "load_run(directory, model=..., guide=...)."
        ) from error
    elbo = rebuild(record["objective"]) if objective is None else make_objective(objective)
    pair = ModelGuidePair(model, guide, elbo)
    pair.dtype = dtype_of(record)
    try:
        trace = pair.materialize_parameters(*template)
        pair.initialize_objective(pair.model, pair.guide, *template)
    except Exception as error:
        raise ValueError(
            f"{specs['model'].name}, {specs['guide'].name}: built again, they do not run on the "
            f"rows of the run: {reason_of(error)} Pass the programs that were fitted: "
            "load_run(directory, model=..., guide=...)."
        ) from error
    if is_old_layout(record):
        tensors = _with_units(trace, pair.state(), tensors)
    try:
        pair.load_state(tensors)
    except ValueError as error:
        raise ValueError(f"{trust.directory}: {error}") from None
    require_finite(trust.directory, pair.unconstrained_parameters)
    return pair


def _with_units(
    trace: Trace, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a run of ppl_lvm 0.1, whose columns had no units: they are 0 and 1.

    Raises:
        ValueError: the guide's parameters of a latent were in the data's units.
    """
    for name, site in trace.nodes.items():
        support = getattr(site.get("fn"), "support", None)
        support = getattr(support, "base_constraint", support)
        if isinstance(support, RealInUnits) and any("/guide/" in n for n in tensors):
            raise ValueError(f"its guide has {name} in other units.")
    units = {n: torch.zeros_like(t) for n, t in state.items() if n.endswith("units.center")}
    units |= {n: torch.ones_like(t) for n, t in state.items() if n.endswith("units.scale")}
    return {**units, **tensors}


def open_run_directory(
    path: Path, record: dict[str, Any], resume: bool, load: Callable[[Path], Any] = load_run
) -> Any:
    """Write run.json, or check that the run.json there records the same request.

    Returns the loaded run where it is finished, otherwise None.

    Raises:
        ValueError: the directory holds a run that may not be resumed, or another run.
    """
    if not (path / "run.json").exists():
        if not resume and any(path.glob("**/*.safetensors")):
            raise ValueError(
                f"{path} has checkpoints of a run, and no run.json. Continue it with resume=True "
                "(--resume), or choose another directory."
            )
        write_record(path, record)
        return None
    stored = read_record(path)
    refuse_links(path)
    if not resume:
        raise ValueError(
            f"{path} holds a run already. Continue it with resume=True, or choose "
            "another directory."
        )
    remedy = "Resume with the options it was started with, or choose another directory."
    now, before = identity(as_stored(record)), identity(stored)
    require_same(f"{path} holds another run", now, before, remedy)
    if stored["results"] is not None and stored.get("evaluated", True):
        return load(path)
    if is_old_layout(stored):
        writer = stored["versions"]["ppl_lvm"]
        raise ValueError(
            f"{path} holds an unfinished run of ppl_lvm {writer}, whose checkpoints this version "
            f"cannot read. Finish it with ppl_lvm {writer}, or fit again in another directory."
        )
    return None
