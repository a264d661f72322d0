"""Fits of a grid of options, on all cores.

    sweep("ppl_lvm.models:PPCA", None, "iris", {"settings.latent": [1, 2, 3], "seed": [0, 1]},
          directory="runs/latents")

Each fit has a process with one thread, and a directory. A sweep that ended goes on where it was:
fits that are finished are not repeated.
"""

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from pickle import PicklingError
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ppl_lvm.core.console import progress as progress_of
from ppl_lvm.core.messages import reason_of, unknown
from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.storage import write_atomic
from ppl_lvm.core.torch_specs import describe
from ppl_lvm.core.validate import Count, DataSource, ProgramSource, Seed
from ppl_lvm.fitting.svi import fit
from ppl_lvm.report.figures.arrays import save
from ppl_lvm.report.figures.grid_search import sweep_figure
from ppl_lvm.training.options import FitOptions, declared

if TYPE_CHECKING:
    from pandas import DataFrame

GROUPS = ("settings", "guide_settings")
RESULTS = ("held_out", "bound", "log_evidence", "converged", "degenerate", "steps", "seconds")


@dataclass(frozen=True)
class _Fit:
    """Arguments of one fit."""

    model: Any
    guide: Any
    data: Any
    options: dict[str, Any]
    directory: Path


@public_call
def sweep(
    model: ProgramSource,
    guide: ProgramSource | None,
    data: DataSource,
    grid: Mapping[str, Any],
    *,
    directory: str | Path,
    options: Mapping[str, Any] | None = None,
    samples: Count | None = None,
    jobs: Count | None = None,
    seed: Seed = 0,
    progress: bool = True,
) -> "DataFrame":
    """Fit every combination of a grid of options; returns a table, best fit first.

    The table has the options, the results, the directory, and the error of a fit that failed. It is
    ordered by the bound on held-out rows, or on training rows where `options` hold none out. It is
    written to sweep.csv in the directory after each fit, with a picture, sweep.png, at the end.

    Args:
        model, guide, data: as of `fit`. Give addresses, classes or functions of a module: they are
            sent to other processes. In a script, call `sweep` under `if __name__ == "__main__":`.
        grid: option of `fit` -> its values. "settings.NAME" and "guide_settings.NAME" are arguments
            of the model and the guide; "guide" and "objective" compare guides and estimators.
        directory: of the fits, one sub-directory each.
        options: of every fit.
        samples: a random search: so many combinations, sampled by `seed` without repetition.
        jobs: processes (default: the number of cores). With 1 the fits are in this process.

    Raises:
        ValueError: an unknown option, or one without values.
    """
    folder, shared = Path(directory), dict(options or {})
    _check(grid, shared)
    fits = [
        (point, _fit_of(model, guide, data, {**shared, **point}, folder / _name(point)))
        for point in _points(grid, samples, seed)
    ]
    rows: list[dict[str, Any]] = []
    table = _table(rows, "bound")
    score = "held_out" if shared.get("validation") else "bound"
    with progress_of("sweep", shown=progress) as say:
        for point, result in _results(fits, jobs or os.cpu_count() or 1):
            rows.append({name: _shown(value) for name, value in point.items()} | result)
            table = _table(rows, score)
            write_atomic(folder / "sweep.csv", table.to_csv(index=False).encode())
            if say is not None:
                say(result["directory"], len(rows), len(fits))
    if table[score].notna().any():
        save(sweep_figure(table, list(grid), score), folder / "sweep.png")
    return table


def _check(grid: Mapping[str, Sequence[Any]], shared: Mapping[str, Any]) -> None:
    names = {field.name for field in declared(FitOptions)} | {"guide"}
    for name in (*grid, *shared):
        group, dot, argument = name.partition(".")
        if (group in GROUPS and argument) if dot else (name in names):
            continue
        raise ValueError(f"sweep: {unknown('option', name, sorted(names))}")
    for name in ("directory", "resume", "progress"):
        if name in grid or name in shared:
            raise ValueError(f"sweep: {name} is set by the sweep. Leave it out.")
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
            raise ValueError(f"sweep: {name}={values!r} is no list of values. Give one, [1, 2].")
        if name in shared:
            raise ValueError(f"sweep: {name} is in the grid and in the options. Leave one out.")
    if not grid:
        raise ValueError("sweep: the grid has no options. Give values of one, {'seed': [0, 1]}.")


def _points(
    grid: Mapping[str, Sequence[Any]], samples: int | None, seed: int
) -> Iterator[dict[str, Any]]:
    """Combinations of the grid in its order, or some of them."""
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if samples is not None and samples < len(points):
        chosen = np.random.default_rng(seed).choice(len(points), samples, replace=False)
        points = [points[k] for k in sorted(chosen)]
    yield from points


def _fit_of(model: Any, guide: Any, data: Any, options: dict[str, Any], directory: Path) -> _Fit:
    """One fit; "settings.latent" is put into `settings`."""
    plain = {name: value for name, value in options.items() if "." not in name}
    for group in GROUPS:
        arguments = {
            name.partition(".")[2]: value
            for name, value in options.items()
            if name.startswith(f"{group}.")
        }
        if arguments:
            plain[group] = {**(plain.get(group) or {}), **arguments}
    return _Fit(model, plain.pop("guide", guide), data, plain, directory)


def _shown(value: Any) -> Any:
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else describe(value)


def _name(point: Mapping[str, Any]) -> str:
    """Name of the directory of a fit: its options and values."""
    parts = [f"{name.rpartition('.')[2]}={_shown(value)}" for name, value in point.items()]
    return re.sub(r"[^\w=.,+-]+", "_", ",".join(parts))[:200]


def _results(
    fits: Sequence[tuple[dict[str, Any], _Fit]], jobs: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Options and results of each fit, as they finish."""
    if jobs == 1:
        yield from ((point, _run(each)) for point, each in fits)
        return
    context = get_context("spawn")  # a fork would share the threads and locks of torch
    with ProcessPoolExecutor(
        jobs, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        pending: dict[Future[Any], dict[str, Any]] = {
            pool.submit(_run, each): point for point, each in fits
        }
        directories = {id(point): str(each.directory) for point, each in fits}
        for future in as_completed(pending):
            point = pending[future]
            try:
                yield point, future.result()
            except BrokenProcessPool:
                why = "its process ended, or another's did. Call sweep again, with fewer jobs"
                yield point, {"directory": directories[id(point)], "error": f"{why}."}
            except (TypeError, AttributeError, PicklingError) as error:
                raise ValueError(
                    f"sweep: the programs or data cannot be sent to another process "
                    f"({reason_of(error)}). Give their addresses, 'mine.py:Model', or jobs=1."
                ) from error


def _run(each: _Fit) -> dict[str, Any]:
    """Results of one fit, or its error."""
    path = each.directory
    resume = (path / "run.json").exists()
    try:
        run = fit(
            each.model,
            each.guide,
            each.data,
            directory=path,
            resume=resume,
            progress=False,
            **each.options,
        )
    except Exception as error:  # of any program: the other fits go on
        return {"directory": str(path), "error": reason_of(error)}
    results = {name: run.results.get(name) for name in RESULTS}
    return {**results, "directory": str(path), "error": ""}


def _table(rows: Sequence[Mapping[str, Any]], score: str) -> "DataFrame":
    """The table, best first; fits that failed, or that must not be chosen, last."""
    import pandas as pd

    table = pd.DataFrame(rows, columns=list(dict.fromkeys(n for row in rows for n in row)))
    for name in (*RESULTS, "directory", "error"):
        if name not in table:
            table[name] = None
    table[score] = pd.to_numeric(table[score])
    order = table.assign(_sound=table["degenerate"].isna()).sort_values(
        ["_sound", score], ascending=False, kind="stable", na_position="last"
    )
    return order.drop(columns="_sound").reset_index(drop=True)
