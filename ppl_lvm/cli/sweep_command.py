"""Command that fits a grid of options."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from ppl_lvm.cli.options import AsJson
from ppl_lvm.cli.results import print_json
from ppl_lvm.core.arguments import checked
from ppl_lvm.core.messages import unknown
from ppl_lvm.core.validate import Count

app = typer.Typer()

ENTRIES = ("model", "guide", "data", "directory", "samples", "jobs", "seed", "options", "grid")


@app.command()
@checked
def sweep(
    file: Annotated[Path, typer.Argument(help="A .toml file: model, data, directory, [grid], …")],
    jobs: Annotated[Count | None, typer.Option(help="Processes (default: all cores).")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit every combination of a grid of options, on all cores; again: the fits that are left."""
    from ppl_lvm import load_data
    from ppl_lvm import sweep as run_sweep

    entries = _read(file)
    data = entries["data"]
    table = run_sweep(
        entries.pop("model"),
        entries.pop("guide", None),
        load_data(**data) if isinstance(data, dict) else data,
        entries.pop("grid"),
        directory=entries.pop("directory", f"runs/{file.stem}"),
        jobs=jobs or entries.pop("jobs", None),
        **{name: value for name, value in entries.items() if name not in ("data", "jobs")},
    )
    if as_json:
        print_json(table.to_dict("records"))
    else:
        print(table.to_string(index=False, float_format="{:.4g}".format, na_rep=""))


def _read(file: Path) -> dict[str, Any]:
    """The entries of a file.

    Raises:
        ValueError: it cannot be read, lacks an entry, or has an unknown one.
    """
    try:
        entries = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{file} cannot be read as TOML ({error}). Correct it.") from error
    for name in entries:
        if name not in ENTRIES:
            raise ValueError(f"{file}: {unknown('entry', name, ENTRIES)}")
    for name in ("model", "data", "grid"):
        if name not in entries:
            raise ValueError(f"{file}: the entry {name} is missing. Give model, data and [grid].")
    return entries
