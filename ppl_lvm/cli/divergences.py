"""Understand: `divergences`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ppl_lvm.cli.options import Columns, Header, Labels, Missing, Settings, load

app = typer.Typer()


@app.command()
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
        typer.Option(help="A start: an argument of the family, center=-2; repeat for more starts."),
    ] = None,
    divergence: Annotated[
        list[str] | None,
        typer.Option(help="Which, such as 'Renyi(alpha=0.2)'; repeatable (default: all)."),
    ] = None,
    num_steps: Annotated[int, typer.Option(help="Updates of each fit.")] = 800,
    num_draws: Annotated[int, typer.Option(help="Of target and family at each update.")] = 256,
    optimizer: Annotated[
        str | None, typer.Option(help="A torch optimiser: 'Adam(lr=0.001)'.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every random number.")] = 0,
    directory: Annotated[
        Path | None, typer.Option(help="Where to keep picture and table (default: runs/…).")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON list, last line.")
    ] = False,
) -> None:
    """Fit a family to a density or to rows by each divergence: what does each cover?"""
    from ppl_lvm.cli.evaluate import show
    from ppl_lvm.cli.fit_command import unused
    from ppl_lvm.core.console import progress
    from ppl_lvm.core.storage import write_json
    from ppl_lvm.divergences import DIVERGENCES, divergence_by_name, fit_all
    from ppl_lvm.divergences.mass_coverage import OPTIMIZER
    from ppl_lvm.report.figures.divergences import coverage_figure
    from ppl_lvm.report.figures.fit import save

    if (density is None) == (data is None):
        raise ValueError(
            "Give one target: a density (ppl-lvm divergences bimodal) or rows (--data iris)."
        )
    named = density if data is None else data
    assert named is not None
    target = (
        _density(named) if data is None else _rows(load(named, columns, labels, missing, header))
    )
    with progress("divergences") as say:
        found = fit_all(
            target,
            _families(family, settings or [], start or [], target, seed),
            [divergence_by_name(text) for text in divergence or ()] or [d() for d in DIVERGENCES],
            num_steps=num_steps,
            num_draws=num_draws,
            optimizer=optimizer or OPTIMIZER,
            seed=seed,
            say=say,
        )
    place = directory or unused("divergences-" + Path(named.rpartition(":")[2]).stem.split("(")[0])
    save(coverage_figure(found), place / "divergences.png")
    write_json(place / "divergences.json", found.to_json())
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        show(found)
        print(f"directory  {place}")


def _density(named: str) -> Any:
    """A distribution by its name here, or by an address."""
    from torch.distributions import Distribution

    from ppl_lvm.divergences import example_densities as densities
    from ppl_lvm.programs.loading import load_program

    if ":" not in named:
        if named not in densities.__all__:
            raise ValueError(
                f"There is no density {named!r}; there are {', '.join(densities.__all__)}, or give "
                "an address, mine.py:target. For rows use --data."
            )
        return getattr(densities, named)()
    found = load_program(named)
    return found if isinstance(found, Distribution) else found()


def _rows(data: Any) -> Any:
    import torch

    x, *more = data.batch(torch.arange(len(data)))
    if more or x.dim() != 2:
        raise ValueError(f"A target is rows (N, P); {data.name} has others beside them.")
    return x


def _families(
    address: str, settings: list[str], starts: list[str], target: Any, seed: int
) -> dict[str, Any]:
    """Start -> a family of as many columns as the target has, which has seen some of its rows."""
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
    own = parse_settings(settings)
    if "observed" in inspect.signature(factory).parameters:
        own = {"observed": x.shape[1]} | own
    made = {}
    for start in starts or [""]:
        q = build(factory, settings=own | parse_settings([start] if start else []), what=address)
        if not hasattr(q, "density"):
            raise ValueError(f"{address} has no density() that returns a distribution of rows.")
        if hasattr(q, "initialize"):
            q.initialize(x)
        made[start] = q
    return made
