"""Trust: `diagnose`, `compare` and `report`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer()


@app.command()
def diagnose(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    data: Annotated[
        str | None, typer.Option(help="The training data (default: what the run names).")
    ] = None,
    held_out: Annotated[str | None, typer.Option(help="Data it has not seen.")] = None,
    quantity: Annotated[
        list[str] | None,
        typer.Option(
            help="A test quantity of your own, mine.py:first_half: data sets (R, N, P) to (R,); "
            "repeatable."
        ),
    ] = None,
    refits: Annotated[
        int, typer.Option(help="Fits to simulated data, for a guide that does not read the data.")
    ] = 0,
    temperatures: Annotated[
        int, typer.Option(help="Of the annealing behind log p(x) and its sandwich.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Of every random number.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON list, last line.")
    ] = False,
) -> None:
    """Can this fit be trusted? Questions, figures, verdicts, and what to do."""
    from ppl_lvm.core.console import progress
    from ppl_lvm.programs.loading import load_program
    from ppl_lvm.runs.directory import load_run

    quantities = {address.rpartition(":")[2]: load_program(address) for address in quantity or ()}
    with progress("diagnose") as say:
        found = load_run(directory).diagnose(
            data,
            held_out=held_out,
            quantities=quantities,
            refits=refits,
            temperatures=temperatures,
            seed=seed,
            say=say,
        )
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        show(found)


@app.command()
def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run directories.")],
    data: Annotated[
        str | None, typer.Option(help="Rows that no run has seen (default: what all held out).")
    ] = None,
    num_particles: Annotated[int, typer.Option(help="Draws behind each row's log p(x).")] = 1000,
    seed: Annotated[int, typer.Option(help="Of every random number.")] = 0,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the differences into this file.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON list, last line.")
    ] = False,
) -> None:
    """Which run is best on the same rows, and by more than chance?"""
    from ppl_lvm.core.console import progress
    from ppl_lvm.report.figures.comparison import comparison_figure
    from ppl_lvm.report.figures.fit import save
    from ppl_lvm.runs.comparison import compare as compare_runs
    from ppl_lvm.runs.directory import load_run

    with progress("compare") as say:
        found = compare_runs(
            [load_run(d) for d in directories],
            data,
            num_particles=num_particles,
            seed=seed,
            say=say,
        )
    if picture is not None:
        save(comparison_figure(found), picture)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        show(found)


def show(found: Any) -> None:
    """On a terminal in its width and colours, elsewhere as plain lines."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(found)
    else:
        print(found)


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run directories.")],
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Diagnose runs and write one HTML page with verdicts and pictures."""
    from ppl_lvm.core.console import progress
    from ppl_lvm.report.report import report as write_report

    with progress("report") as say:
        print(write_report(directories, output, say=say))
