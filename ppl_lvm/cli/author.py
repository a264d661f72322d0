"""Commands for authors: `new`, `check` and `show`."""

from pathlib import Path
from typing import Annotated

import typer

from ppl_lvm.cli.options import (
    AsJson,
    Columns,
    DataOption,
    Guide,
    GuideSettings,
    Header,
    Labels,
    Missing,
    Model,
    Settings,
    load,
)
from ppl_lvm.cli.results import print_json, print_list
from ppl_lvm.core.arguments import checked
from ppl_lvm.core.call_syntax import parse_settings
from ppl_lvm.core.validate import Count

app = typer.Typer()


@app.command()
@checked
def new(
    name: Annotated[str, typer.Argument(help="Name of the files in lower case: topic_model.")],
    like: Annotated[
        str | None,
        typer.Option(help="Start from a bundled model (gmm, vae, …) or from an address."),
    ] = None,
    directory: Annotated[Path, typer.Option(help="Where to write the files.")] = Path("."),
    as_json: AsJson = False,
) -> None:
    """Write a model, its guide, their test and a README, to start from."""
    from ppl_lvm.scaffold.new import new as write_files

    paths = [str(path) for path in write_files(name, like, directory)]
    if as_json:
        print_json({"files": paths})
    else:
        print(*paths, sep="\n")


@app.command()
@checked
def check(
    model: Model,
    data: DataOption,
    guide: Guide = None,
    settings: Settings = None,
    guide_settings: GuideSettings = None,
    columns: Columns = None,
    labels: Labels = None,
    missing: Missing = "error",
    header: Header = None,
    batch_size: Annotated[
        Count | None, typer.Option(help="Rows of a step, if you train on mini-batches.")
    ] = None,
    rows: Annotated[Count, typer.Option(help="Rows of the data to run the pair on.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Check a model and a guide: faults with remedies, and the objectives that suit.

    The exit status is 1 if there is an error.
    """
    from ppl_lvm import check as check_pair
    from ppl_lvm.data.selection import first_rows
    from ppl_lvm.programs.sources import GuideFactory, ModelFactory
    from ppl_lvm.training.preparation import make_guide

    loaded = load(data, columns, labels, missing, header)
    batch = first_rows(loaded, batch_size or rows)
    model_program = ModelFactory(model, parse_settings(settings or [])).make(batch)
    guides = GuideFactory(guide, parse_settings(guide_settings or [], "--set-guide"))
    guide_program = make_guide(guides, model_program, batch)
    num_rows = None if batch_size is None else len(loaded)
    issues = check_pair(model_program, guide_program, *batch, num_rows=num_rows)
    print_list(issues, as_json)
    if not issues.ok:
        raise typer.Exit(1)


@app.command()
@checked
def show(
    model: Model,
    data: DataOption,
    settings: Settings = None,
    columns: Columns = None,
    labels: Labels = None,
    missing: Missing = "error",
    header: Header = None,
    rows: Annotated[Count, typer.Option(help="Rows of the data to call the model with.")] = 100,
    graph: Annotated[
        Path | None,
        typer.Option(help="Also draw its graph to a .png, .svg or .pdf by Graphviz, or as .dot."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the declarations of a model: sites, plates, supports, shapes, parameters, graph."""
    from ppl_lvm.data.selection import first_rows
    from ppl_lvm.programs.graph import as_text, draw
    from ppl_lvm.programs.signatures import signature
    from ppl_lvm.programs.sources import ModelFactory

    loaded = load(data, columns, labels, missing, header)
    batch = first_rows(loaded, rows)
    program = ModelFactory(model, parse_settings(settings or [])).make(batch)
    declarations = signature(program, *batch)
    path = None if graph is None else draw(declarations, graph)
    if as_json:
        print_json({**declarations.to_json(), "graph": None if path is None else str(path)})
        return
    print(declarations, as_text(declarations), sep="\n\n")
    if path is not None:
        hint = "" if path == graph else f"; with Graphviz: dot -Tpng -O {path}"
        print(f"\ngraph: {path}{hint}")
