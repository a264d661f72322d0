"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ppl_lvm.core import validate

DATA, MODEL, TRAINING, OUTPUT = "Data", "Model", "Training", "Output"  # groups of the help

Model = Annotated[
    str, typer.Argument(help="Address of the model: models/vae.py:VAE or package.module:Name.")
]
Guide = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MODEL, help="Address of the guide (default: chosen for the model)."
    ),
]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        rich_help_panel=DATA,
        help="A named data set such as iris or 'digits(binarize=8)', a .csv, .tsv, .txt, .npy, "
        ".npz, .parquet, .arrow or .feather file, or a folder or pattern, 'rows/*.parquet'.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", rich_help_panel=MODEL, help="An argument of the model, components=3; repeatable."
    ),
]
GuideSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set-guide", rich_help_panel=MODEL, help="An argument of the guide; repeatable."
    ),
]
Columns = Annotated[
    str | None, typer.Option(rich_help_panel=DATA, help="Columns of the file to use: a,b,c.")
]
Labels = Annotated[
    str | None,
    typer.Option(rich_help_panel=DATA, help="Column of class labels; the model does not see it."),
]
Missing = Annotated[
    str,
    typer.Option(
        rich_help_panel=DATA, help="error, or keep: pass missing values to the model as NaN."
    ),
]
Header = Annotated[
    bool | None,
    typer.Option(
        rich_help_panel=DATA, help="The first line of a .csv file holds names (default: detected)."
    ),
]
ImageShape = Annotated[
    tuple[int, int] | None,
    typer.Option(rich_help_panel=DATA, help="Height and width, if rows are flattened images: 8 8."),
]
OneSequence = Annotated[
    bool,
    typer.Option(
        "--one-sequence",
        rich_help_panel=DATA,
        help="The rows of the data are the steps of one sequence.",
    ),
]
Seed = Annotated[
    validate.Seed, typer.Option(rich_help_panel=TRAINING, help="Seed of every random number.")
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", rich_help_panel=OUTPUT, help="Print the result as JSON in the last line."
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        rich_help_panel=OUTPUT,
        help="Run the programs that a run names outside of ppl_lvm, if their files are outside of "
        "its directory and as they were at the fit.",
    ),
]
RunDirectory = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
RunDirectories = Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run directories.")]


def load(
    data: str,
    columns: str | None,
    labels: str | None,
    missing: str,
    header: bool | None,
    image_shape: tuple[int, int] | None = None,
    one_sequence: bool = False,
    weights: str | None = None,
    exposure: str | None = None,
) -> Any:
    """The data that these options name."""
    from ppl_lvm.data import load_data

    names = None if columns is None else [name.strip() for name in columns.split(",")]
    return load_data(
        data,
        columns=names,
        labels=labels,
        missing=missing,  # type: ignore[arg-type]  # checked there
        header=header,
        image_shape=image_shape,
        one_sequence=one_sequence,
        weights=weights,
        exposure=exposure,
    )


def unused_directory(stem: str) -> Path:
    """The first of runs/STEM-1, runs/STEM-2, … that does not exist."""
    number = 1
    while (Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return Path("runs") / f"{stem}-{number}"
