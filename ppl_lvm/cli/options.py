"""Arguments and options that several commands share."""

from typing import Annotated, Any

import typer

Model = Annotated[
    str, typer.Argument(help="Address of the model: models/vae.py:VAE or package.module:Name.")
]
Guide = Annotated[
    str | None, typer.Option(help="Address of the guide (default: one that suits the model).")
]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="A named set such as iris or 'digits(binarize=8)', or a .csv, .npy, .npz or "
        ".parquet file.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="An argument of the model, components=3; repeat for more."),
]
GuideSettings = Annotated[
    list[str] | None, typer.Option("--set-guide", help="An argument of the guide; repeatable.")
]
Columns = Annotated[str | None, typer.Option(help="Columns of the file to use: a,b,c.")]
Labels = Annotated[str | None, typer.Option(help="Column of class labels, kept from the model.")]
Missing = Annotated[
    str, typer.Option(help="error, or keep: pass missing values to the model as NaN.")
]
Header = Annotated[
    bool | None,
    typer.Option(help="Whether the first line of a .csv file has names (default: inferred)."),
]

ImageShape = Annotated[
    tuple[int, int] | None,
    typer.Option(help="Height and width, where rows are flattened pictures: 8 8."),
]


def load(
    data: str,
    columns: str | None,
    labels: str | None,
    missing: str,
    header: bool | None,
    image_shape: tuple[int, int] | None = None,
) -> Any:
    """The data that these options name."""
    from ppl_lvm.data import load_data

    names = None if columns is None else [name.strip() for name in columns.split(",")]
    return load_data(
        data,
        columns=names,
        labels=labels,
        missing=missing,
        header=header,
        image_shape=image_shape,
    )
