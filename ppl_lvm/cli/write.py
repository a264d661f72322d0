"""Write: `new`, `check` and `show`."""

from pathlib import Path
from typing import Annotated

import typer

from ppl_lvm.address import parse_settings
from ppl_lvm.cli.options import DataOption, Guide, GuideSettings, Model, Settings

app = typer.Typer()


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Of the files, in lower case: topic_model.")],
    like: Annotated[
        str | None,
        typer.Option(help="Start from a model of ours (gmm, vae, …) or from an address."),
    ] = None,
    directory: Annotated[Path, typer.Option(help="Where to write the files.")] = Path("."),
) -> None:
    """Write a model, its guide, their test and a README, to start from."""
    from ppl_lvm.new import new as write

    for path in write(name, like, directory):
        print(path)


@app.command()
def check(
    model: Model,
    data: DataOption,
    guide: Guide = None,
    settings: Settings = None,
    guide_settings: GuideSettings = None,
    rows: Annotated[int, typer.Option(help="Rows of the data to run the pair on.")] = 100,
) -> None:
    """Does this guide fit this model? Findings with remedies; status 1 where one is an error."""
    import torch

    from ppl_lvm.check import check as check_pair
    from ppl_lvm.data import load_data
    from ppl_lvm.programs import GuideSource, ModelSource

    loaded = load_data(data)
    batch = loaded.batch(torch.arange(min(rows, len(loaded))))
    program = ModelSource(model, parse_settings(settings or [])).make(batch)
    partner = GuideSource(guide, parse_settings(guide_settings or [])).make(program, batch)
    findings = check_pair(program, partner, *batch)
    print(findings)
    if not findings.ok:
        raise typer.Exit(1)


@app.command()
def show(
    model: Model,
    data: DataOption,
    settings: Settings = None,
    rows: Annotated[int, typer.Option(help="Rows of the data to call the model with.")] = 100,
) -> None:
    """Print what a model declares: sites, plates, supports, shapes, parameters."""
    import torch

    from ppl_lvm.data import load_data
    from ppl_lvm.programs import ModelSource
    from ppl_lvm.signature import signature

    loaded = load_data(data)
    batch = loaded.batch(torch.arange(min(rows, len(loaded))))
    program = ModelSource(model, parse_settings(settings or [])).make(batch)
    print(signature(program, *batch))
