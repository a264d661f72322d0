"""Commands that use runs: diagnose, compare, report, explore, encode, impute."""

from pathlib import Path
from typing import Annotated

import typer

from ppl_lvm.cli.options import (
    DATA,
    OUTPUT,
    AsJson,
    DataOption,
    RunDirectories,
    RunDirectory,
    Seed,
    Trust,
)
from ppl_lvm.cli.results import print_file, print_list
from ppl_lvm.core.arguments import checked
from ppl_lvm.core.validate import Count, Whole

app = typer.Typer()


@app.command()
@checked
def diagnose(
    directory: RunDirectory,
    data: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=DATA, help="The training data (default: those named by the run)."
        ),
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(rich_help_panel=DATA, help="Data that the run did not use.")
    ] = None,
    quantity: Annotated[
        list[str] | None,
        typer.Option(
            help="Address of a test quantity, mine.py:first_half: data sets (R, N, P) to (R,); "
            "repeatable."
        ),
    ] = None,
    refits: Annotated[
        Whole, typer.Option(help="Fits to simulated data, for a guide that does not read the data.")
    ] = 0,
    temperatures: Annotated[
        Count, typer.Option(help="Temperatures of the annealing that brackets log p(x).")
    ] = 100,
    seed: Seed = 0,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Can this fit be trusted? Questions, figures, verdicts, and remedies."""
    from ppl_lvm import load_run
    from ppl_lvm.core.console import progress
    from ppl_lvm.programs.loading import load_program

    quantities = {address.rpartition(":")[2]: load_program(address) for address in quantity or ()}
    with progress("diagnose") as say:
        diagnosis = load_run(directory, trust=trust).diagnose(
            data,
            held_out=held_out,
            quantities=quantities,
            refits=refits,
            temperatures=temperatures,
            seed=seed,
            say=say,
        )
    print_list(diagnosis, as_json)


@app.command()
@checked
def compare(
    directories: RunDirectories,
    data: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=DATA,
            help="Rows that no run has used (default: those that all held out).",
        ),
    ] = None,
    num_particles: Annotated[Count, typer.Option(help="Draws for each row's log p(x).")] = 1000,
    seed: Seed = 0,
    picture: Annotated[
        Path | None,
        typer.Option(rich_help_panel=OUTPUT, help="Draw the differences into this file."),
    ] = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Rank runs by their log p(x) of the same rows, with standard errors of the differences."""
    from ppl_lvm import compare as compare_runs
    from ppl_lvm import load_run
    from ppl_lvm.core.console import progress
    from ppl_lvm.report.figures.arrays import save
    from ppl_lvm.report.figures.comparison import comparison_figure

    with progress("compare") as say:
        comparison = compare_runs(
            [load_run(d, trust=trust) for d in directories],
            data,
            num_particles=num_particles,
            seed=seed,
            say=say,
        )
    if picture is not None:
        save(comparison_figure(comparison), picture)
    print_list(comparison, as_json)


@app.command()
@checked
def report(
    directories: RunDirectories,
    output: Annotated[Path, typer.Option(rich_help_panel=OUTPUT, help="The page to write.")] = Path(
        "report.html"
    ),
    data: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=DATA, help="Training rows of runs whose data had no name or path."
        ),
    ] = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Diagnose runs and write one HTML page with verdicts and figures."""
    from ppl_lvm.core.console import progress
    from ppl_lvm.report.report import report as write_report

    with progress("report") as say:
        page = write_report(directories, output, data=data, trust=trust, say=say)
    print_file("page", page, as_json)


@app.command()
@checked
def explore(
    directory: RunDirectory,
    output: Annotated[Path, typer.Option(rich_help_panel=OUTPUT, help="The page to write.")] = Path(
        "explore.html"
    ),
    data: Annotated[
        str | None,
        typer.Option(rich_help_panel=DATA, help="Rows to show (default: those of the fit)."),
    ] = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Write a page to explore a fit: its latents, rows and parameters, without a network."""
    from ppl_lvm.report.explore import explore as write_page

    page = write_page(directory, output, data=data, trust=trust)
    print_file("page", page, as_json)


@app.command()
@checked
def encode(
    directory: RunDirectory,
    data: DataOption,
    output: Annotated[
        Path, typer.Option(rich_help_panel=OUTPUT, help="The .parquet file to write.")
    ],
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Write the posterior means of the latents of rows, as they are computed."""
    from ppl_lvm import load_run

    load_run(directory, trust=trust).encode(data, output=output)
    print_file("output", output, as_json)


@app.command()
@checked
def impute(
    directory: RunDirectory,
    data: DataOption,
    output: Annotated[
        Path, typer.Option(rich_help_panel=OUTPUT, help="The .csv or .npy file to write.")
    ],
    num_samples: Annotated[
        Count | None, typer.Option(help="Draws in a .npy file (default: conditional means).")
    ] = None,
    seed: Seed = 0,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Fill the missing values of rows with their means given the row's other values."""
    import numpy as np

    from ppl_lvm import load_run

    suffix = output.suffix
    if suffix not in (".csv", ".npy") or (num_samples is not None and suffix == ".csv"):
        raise ValueError(f"--output {output}: write a .npy file, or a .csv file of means.")
    run = load_run(directory, trust=trust)
    rows = run.rows(data, missing="keep")
    imputed = run.impute(rows, num_samples=num_samples, seed=seed)
    if len(imputed) > 1:
        raise ValueError(
            f"impute: the model observes {', '.join(imputed)}. Use run.impute(x) in Python."
        )
    ((name, values),) = imputed.items()
    if suffix == ".npy":
        np.save(output, values.numpy())
    else:
        columns = rows.columns or [f"{name}_{p}" for p in range(values[0].numel())]
        table, header = values.flatten(1).numpy(), ",".join(columns)
        np.savetxt(output, table, "%.9g", ",", header=header, comments="")
    print_file("output", output, as_json, site=name, shape=list(values.shape))
