"""Trust: `diagnose` and `report`."""

import json
from pathlib import Path
from typing import Annotated

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
    seed: Annotated[int, typer.Option(help="Of every random number.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON list, last line.")
    ] = False,
) -> None:
    """Can this fit be trusted? Questions, figures, verdicts, and what to do."""
    from ppl_lvm.address import load_program
    from ppl_lvm.diagnostics.show import progress
    from ppl_lvm.run import load_run

    quantities = {address.rpartition(":")[2]: load_program(address) for address in quantity or ()}
    with progress() as say:
        found = load_run(directory).diagnose(
            data, held_out=held_out, quantities=quantities, refits=refits, seed=seed, say=say
        )
    console = Console(highlight=False)
    if as_json:
        print(json.dumps(found.to_json()))
    elif console.is_terminal:
        console.print(found)
    else:
        print(found)


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run directories.")],
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Diagnose runs and write one HTML page with verdicts and pictures."""
    from ppl_lvm.diagnostics.show import progress
    from ppl_lvm.report.runs import report as write_report

    with progress() as say:
        print(write_report(directories, output, say=say))
