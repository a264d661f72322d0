"""Words from the command line -> one call. Errors of the user's are one line, without a trace."""

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from ppl_lvm.address import parse_settings

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# The options of `fit` that expectation-maximisation knows.
EM_OPTIONS = {
    *("model", "data", "settings", "columns", "labels", "objective", "num_steps"),
    *("batch_size", "restarts", "seed", "directory", "as_json"),
}

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


@app.callback()
def _root() -> None:
    """Latent-variable models as Pyro programs: write them, train them, trust them."""


@app.command()
def fit(
    context: typer.Context,
    model: Model,
    data: DataOption,
    guide: Guide = None,
    settings: Settings = None,
    guide_settings: GuideSettings = None,
    columns: Annotated[str | None, typer.Option(help="Columns of the file to use: a,b,c.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Column of class labels, kept from the model.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="Such as 'IWAE(num_particles=5)', or em (default: the ELBO)."),
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
        str, typer.Option(help="eager, auto or captured (replays recorded operations: faster).")
    ] = "eager",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run there.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object, last line.")
    ] = False,
) -> None:
    """Fit a model to data and keep the run in a directory."""
    from ppl_lvm.data import load_data
    from ppl_lvm.em import fit_em
    from ppl_lvm.fit import fit as fit_pair

    names = None if columns is None else [c.strip() for c in columns.split(",")]
    loaded = load_data(data, columns=names, labels=labels)
    held_out = int(validation) if validation is not None and validation >= 1 else validation
    place = _directory(directory, model, loaded.name, resume)
    if objective == "em":
        _refuse_gradient_options(context)
        run = fit_em(
            model,
            loaded,
            max_iterations=num_steps or 1000,
            batch_size=batch_size,
            restarts=restarts,
            seed=seed,
            settings=parse_settings(settings or []),
            directory=place,
        )
        _say_results(run, as_json)
        return
    run = fit_pair(
        model,
        guide,
        loaded,
        objective=objective,
        optimizer=optimizer,
        schedule=schedule,
        num_steps=num_steps,
        num_epochs=num_epochs,
        batch_size=batch_size,
        validation=held_out,
        patience=patience,
        clip_norm=clip_norm,
        kl_weight=kl_weight,
        kl_annealing=kl_annealing,
        restarts=restarts,
        seed=seed,
        settings=parse_settings(settings or []),
        guide_settings=parse_settings(guide_settings or []),
        directory=place,
        checkpoint_seconds=checkpoint_seconds,
        engine=cast(Any, engine),
        resume=resume,
    )
    _say_results(run, as_json)


def _refuse_gradient_options(context: typer.Context) -> None:
    """Expectation-maximisation has no optimiser and no guide: an option for one is a mistake."""
    for name in sorted(context.params.keys() - EM_OPTIONS):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ValueError(f"--objective em takes no --{name.replace('_', '-')}; leave it out.")


def _say_results(run: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_without_nan(run.results)))
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
    from ppl_lvm.demo import main as run_demo

    run_demo(directory or _unused("demo"), seed=seed)


@app.command()
def diagnose(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    data: Annotated[
        str | None, typer.Option(help="The training data (default: what the run names).")
    ] = None,
    held_out: Annotated[str | None, typer.Option(help="Data it has not seen.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random number.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON list, last line.")
    ] = False,
) -> None:
    """Can this fit be trusted? Questions, figures, verdicts, and what to do."""
    from ppl_lvm.diagnostics.show import progress
    from ppl_lvm.run import load_run

    with progress() as say:
        found = load_run(directory).diagnose(data, held_out=held_out, seed=seed, say=say)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        Console(highlight=False).print(found)


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


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Which question; none lists them.")] = None,
) -> None:
    """Run a benchmark: ppl-lvm bench gradients --smoke. Its own options follow its name."""
    import importlib
    import pkgutil

    benchmarks = importlib.import_module("ppl_lvm.benchmarks")

    questions = {}
    for found in pkgutil.iter_modules(benchmarks.__path__):
        if name in (None, found.name) and not found.ispkg:
            module = importlib.import_module(f"ppl_lvm.benchmarks.{found.name}")
            if hasattr(module, "run"):
                questions[found.name] = module
    if name is None:
        for found_name, module in questions.items():
            print(f"{found_name:<12}{(module.__doc__ or '').strip().splitlines()[0]}")
    elif name not in questions:
        raise ValueError(f"There is no benchmark {name!r}; `ppl-lvm bench` lists them.")
    else:
        record = importlib.import_module("ppl_lvm.benchmarks.record")
        record.command(questions[name].run, context.args)


def print_results(run: Any) -> None:
    """A run's figures as a table that a narrow terminal and a pipe can hold."""
    results = run.results
    table = Table(show_header=False, box=None, pad_edge=False)
    error = results["bound_monte_carlo_error"]
    table.add_row("bound", f"{results['bound']:.4f} ± {error:.4f} nats per datum (training rows)")
    if results["held_out"] is not None:
        error = results["held_out_monte_carlo_error"]
        table.add_row("held out", f"{results['held_out']:.4f} ± {error:.4f} nats per datum")
    table.add_row(
        "log evidence",
        f"{results['log_evidence']:.4f} {_error(results)} nats per datum "
        f"({results['log_evidence_of']}, particles: {results['num_particles']})",
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


def _error(results: dict[str, Any]) -> str:
    """± the standard error over data; of the draws for a joint weight, which has no other."""
    error = results["log_evidence_standard_error"]
    if error is None or error != error:
        return f"± {results['log_evidence_monte_carlo_error']:.4f} (of the draws)"
    return f"± {error:.4f}"


def _directory(asked: Path | None, model: str, data: str, resume: bool) -> Path:
    if asked is not None:
        return asked
    if resume:
        raise ValueError("--resume needs --directory, the run to continue.")
    return _unused(f"{model.rpartition(':')[2]}-{Path(data).stem.partition('(')[0]}")


def _unused(stem: str) -> Path:
    number = 1
    while (Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return Path("runs") / f"{stem}-{number}"


def _without_nan(results: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and v != v else v for k, v in results.items()}


def _one_line(message: Warning | str, *_: Any) -> None:
    print(f"ppl-lvm: {message}", file=sys.stderr)


def main() -> None:
    """Run the command line; a mistake of the user's ends in one line and status 2."""
    warnings.showwarning = _one_line  # type: ignore[assignment]
    try:
        app()
    except (ValueError, FileNotFoundError, ImportError, ArithmeticError) as error:
        print(f"ppl-lvm: {error}", file=sys.stderr)
        sys.exit(2)
