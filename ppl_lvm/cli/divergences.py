"""Command `divergences`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ppl_lvm.cli.options import (
    AsJson,
    Columns,
    Header,
    Labels,
    Missing,
    Seed,
    Settings,
    load,
    unused_directory,
)
from ppl_lvm.cli.results import print_list
from ppl_lvm.core.arguments import checked
from ppl_lvm.core.validate import Count

app = typer.Typer()


@app.command()
@checked
def divergences(
    density: Annotated[
        str | None,
        typer.Argument(
            help="The target: bimodal, four_modes, or the address of a distribution of a row "
            "or of a function that returns one, mine.py:target."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Rows as the target instead: a name or a file.")
    ] = None,
    columns: Columns = None,
    labels: Labels = None,
    missing: Missing = "error",
    header: Header = None,
    family: Annotated[
        str, typer.Option(help="Address of the family, a module with density().")
    ] = "ppl_lvm.models.gaussian:Gaussian",
    settings: Settings = None,
    start: Annotated[
        list[str] | None,
        typer.Option(help="Initial value: an argument of the family, center=-2; repeatable."),
    ] = None,
    divergence: Annotated[
        list[str] | None,
        typer.Option(help="A divergence such as 'Renyi(alpha=0.2)'; repeatable (default: all)."),
    ] = None,
    num_steps: Annotated[Count, typer.Option(help="Updates of each fit.")] = 800,
    num_draws: Annotated[Count, typer.Option(help="Draws of target and family per update.")] = 256,
    optimizer: Annotated[
        str | None, typer.Option(help="A torch optimizer: 'Adam(lr=0.001)'.")
    ] = None,
    seed: Seed = 0,
    directory: Annotated[
        Path | None, typer.Option(help="Directory of figure and table (default: runs/…).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a family to a density or to rows by each divergence, and report the mass covered."""
    from ppl_lvm.core.console import progress
    from ppl_lvm.core.storage import write_json
    from ppl_lvm.divergences import DIVERGENCES, divergence_by_name, fit_all
    from ppl_lvm.divergences.mass_coverage import OPTIMIZER
    from ppl_lvm.report.figures.arrays import save
    from ppl_lvm.report.figures.divergences import coverage_figure

    if density is not None and data is None:
        name, target = density, _density(density)
    elif data is not None and density is None:
        name, target = data, _rows(load(data, columns, labels, missing, header))
    else:
        raise ValueError(
            "Give one target: a density (ppl-lvm divergences bimodal) or rows (--data iris)."
        )
    with progress("divergences") as say:
        coverage = fit_all(
            target,
            _families(family, settings or [], start or [], target, seed),
            [divergence_by_name(text) for text in divergence or ()] or [d() for d in DIVERGENCES],
            num_steps=num_steps,
            num_draws=num_draws,
            optimizer=optimizer or OPTIMIZER,
            seed=seed,
            say=say,
        )
    stem = Path(name.rpartition(":")[2]).stem.partition("(")[0]
    folder = directory or unused_directory(f"divergences-{stem}")
    save(coverage_figure(coverage), folder / "divergences.png")
    write_json(folder / "divergences.json", coverage.to_json())
    print_list(coverage, as_json)
    if not as_json:
        print(f"directory  {folder}")


def _density(name: str) -> Any:
    """A distribution by the name of a bundled example, or by an address."""
    from torch.distributions import Distribution

    from ppl_lvm.core.messages import unknown
    from ppl_lvm.divergences import example_densities
    from ppl_lvm.programs.loading import load_program

    if ":" not in name:
        if name not in example_densities.__all__:
            raise ValueError(
                f"{unknown('density', name, example_densities.__all__)} Or give an address, "
                "mine.py:target; rows by --data."
            )
        return getattr(example_densities, name)()
    program = load_program(name)
    return program if isinstance(program, Distribution) else program()


def _rows(data: Any) -> Any:
    from ppl_lvm.data.selection import first_rows

    x, *more = first_rows(data, len(data))
    if more or x.dim() != 2:
        raise ValueError(f"{data.name}: a target is rows (N, P) of one tensor.")
    return x


def _families(
    address: str, settings: list[str], starts: list[str], target: Any, seed: int
) -> dict[str, Any]:
    """Initial value -> a family with the columns of the target, initialized from its rows."""
    import inspect

    import torch

    from ppl_lvm.core.call_syntax import build, parse_settings
    from ppl_lvm.divergences import as_target
    from ppl_lvm.programs.loading import load_program

    draw = as_target(target).draw
    assert draw is not None
    torch.manual_seed(seed)
    x = draw(1000)
    factory = load_program(address)
    arguments = parse_settings(settings)
    if "observed" in inspect.signature(factory).parameters:
        arguments = {"observed": x.shape[1]} | arguments
    families = {}
    for start in starts or [""]:
        initial = parse_settings([start] if start else [], "--start")
        q = build(factory, settings=arguments | initial, what=address)
        if not hasattr(q, "density"):
            raise ValueError(f"{address} has no density() that returns a distribution of rows.")
        if hasattr(q, "initialize"):
            q.initialize(x)
        families[start] = q
    return families
