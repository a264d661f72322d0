"""Train: `fit` and `demo`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ppl_lvm.cli.options import (
    Columns,
    DataOption,
    Guide,
    GuideSettings,
    Header,
    ImageShape,
    Labels,
    Missing,
    Model,
    Settings,
    load,
)

app = typer.Typer()


@app.command()
def fit(
    context: typer.Context,
    model: Model,
    data: DataOption,
    guide: Guide = None,
    settings: Settings = None,
    guide_settings: GuideSettings = None,
    columns: Columns = None,
    labels: Labels = None,
    missing: Missing = "error",
    header: Header = None,
    image_shape: ImageShape = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="Such as 'IWAE(num_particles=5)'; or em, 'em(decay=0.6)', mcem, adversarial "
            "(default: the ELBO)."
        ),
    ] = None,
    optimizer: Annotated[
        str, typer.Option(help="A torch optimiser: 'Adam(lr=0.001)'.")
    ] = "Adam(lr=0.01)",
    schedule: Annotated[
        str | None, typer.Option(help="A torch schedule: 'CosineAnnealingLR(T_max=1000)'.")
    ] = None,
    num_steps: Annotated[int | None, typer.Option(help="Updates in all (default 2000).")] = None,
    num_epochs: Annotated[int | None, typer.Option(help="Passes over the data instead.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step (default: all).")] = None,
    validation: Annotated[
        float | None, typer.Option(help="Rows held out: a share below 1, or a number of rows.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many evaluations without improvement.")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest gradient norm.")] = None,
    kl_weight: Annotated[float, typer.Option(help="Weight of the KL term.")] = 1.0,
    kl_annealing: Annotated[int, typer.Option(help="Steps over which it grows from 0.")] = 0,
    restarts: Annotated[int, typer.Option(help="Independent starts; the best is kept.")] = 1,
    seed: Annotated[int, typer.Option(help="Of every random number.")] = 0,
    directory: Annotated[
        Path | None, typer.Option(help="Where to keep the run (default: runs/MODEL-DATA-…).")
    ] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="Between two checkpoints.")] = 10.0,
    engine: Annotated[
        str, typer.Option(help="How steps are taken: auto, eager, captured or compiled.")
    ] = "auto",
    steps_per_call: Annotated[int, typer.Option(help="Steps a compiled call takes at most.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run there.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object, last line.")
    ] = False,
) -> None:
    """Fit a model to data and keep the run in a directory."""
    values = dict(locals())
    from ppl_lvm.cli.dispatch import run
    from ppl_lvm.core import distributed as processes

    context.with_resource(processes.joined())
    loaded = load(data, columns, labels, missing, header, image_shape)
    place = processes.from_first(_directory(directory, model, loaded.name, resume))
    _say_results(run(context, values, loaded, place), as_json)


def _say_results(run: Any, as_json: bool) -> None:
    from ppl_lvm.core import distributed as processes

    if processes.rank() > 0:
        return
    if as_json:
        print(json.dumps(_without_nan(run.results)))
    elif run.record["guide"] is None:
        print_adversaries(run)
    else:
        print_results(run)


@app.command()
def demo(
    directory: Annotated[
        Path | None, typer.Option(help="Where the runs go (default: runs/demo-1, -2, …).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every random number.")] = 0,
) -> None:
    """Fit a mixture to Iris and a VAE to the digits, judge and picture them."""
    from ppl_lvm.cli.demo import main as run_demo

    run_demo(directory or unused("demo"), seed=seed)


def print_results(run: Any) -> None:
    """A run's figures as a table that a narrow terminal and a pipe can hold."""
    results = run.results
    table = Table(show_header=False, box=None, pad_edge=False)
    error = results["bound_monte_carlo_error"]
    weight = run.record["options"].get("kl_weight", 1.0)
    tempered = "" if weight == 1 else f", KL term times {weight:g}"
    tempered += ": no bound on log p(x)" if weight < 1 else ""
    bound = f"{results['bound']:.4f} ± {error:.4f} nats per row (training rows{tempered})"
    table.add_row("bound", bound)
    joint = _is_joint(results) and results["held_out"] is not None
    if results["held_out"] is not None:
        error = results["held_out_monte_carlo_error"]
        # Two different things: rows that join those trained on, and rows that stand alone.
        joining = ", the KL of global latents shared with the training rows" if joint else ""
        of = f" ({(joining + tempered)[2:]})" if joining or tempered else ""
        table.add_row("held out", f"{results['held_out']:.4f} ± {error:.4f} nats per row{of}")
    alone = " as a data set of their own" if joint else ""
    table.add_row(
        "log evidence",
        f"{results['log_evidence']:.4f} {_error(results)} nats per row "
        f"({results['log_evidence_of']}{alone}, particles: {results['num_particles']})",
    )
    if len(run.restarts) > 1:
        bounds = sorted(r["bound"] for r in run.restarts)
        middle = bounds[len(bounds) // 2]
        table.add_row(
            "restarts",
            f"{len(bounds)}: bound {bounds[0]:.4f} to {bounds[-1]:.4f}, median {middle:.4f}",
        )
    for restart in run.restarts:
        if restart["degenerate"]:
            table.add_row(
                f"seed {restart['seed']}",
                f"bound {restart['bound']:.4f}, "
                + ("KEPT, for every start failed: " if restart["chosen"] else "not chosen: ")
                + restart["degenerate"],
            )
    table.add_row("steps", f"{results['steps']} in {results['seconds']:.1f} s")
    if run.directory is not None:
        table.add_row("directory", str(run.directory))
    Console(soft_wrap=False, highlight=False).print(table)


def print_adversaries(found: Any) -> None:
    """The figures of adversarial training, as `print_results` shows a run's."""
    results = found.results
    table = Table(show_header=False, box=None, pad_edge=False)
    told = results["jensen_shannon"]
    table.add_row("Jensen-Shannon", f"{told:.4f} nats, a lower bound; 0: draws are like data")
    if results["accuracy"] is None:
        table.add_row("told apart", "not tested: fewer than 20 rows; hold out more")
    else:
        table.add_row(
            "told apart",
            f"{results['accuracy']:.2f} of the {results['two_sample_of']} and as many draws (0.50: "
            f"a coin's), p = {results['p_value']:.3f}",
        )
    table.add_row("steps", f"{results['steps']} in {results['seconds']:.1f} s")
    if found.directory is not None:
        table.add_row("directory", str(found.directory))
    Console(soft_wrap=False, highlight=False).print(table)


def _error(results: dict[str, Any]) -> str:
    """± the standard error over data; of the draws for a joint weight, which has no other."""
    if _is_joint(results):
        return f"± {results['log_evidence_monte_carlo_error']:.4f} (of the draws)"
    return f"± {results['log_evidence_standard_error']:.4f}"


def _is_joint(results: dict[str, Any]) -> bool:
    """Whether the rows have one weight together, for the sake of global latents."""
    error = results["log_evidence_standard_error"]
    return error is None or error != error


def _directory(asked: Path | None, model: str, data: str, resume: bool) -> Path:
    if asked is not None:
        return asked
    if resume:
        raise ValueError("--resume needs --directory, the run to continue.")
    return unused(f"{model.rpartition(':')[2]}-{Path(data).stem.partition('(')[0]}")


def unused(stem: str) -> Path:
    """A folder of runs/ that is not there yet: runs/STEM-1, -2, …"""
    number = 1
    while (Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return Path("runs") / f"{stem}-{number}"


def _without_nan(results: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and v != v else v for k, v in results.items()}
