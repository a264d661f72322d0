"""Arguments and options that several commands share."""

from typing import Annotated

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
