"""Commands that fit: `fit` and `demo`.

`--objective em`, `mcem` and `adversarial` call `ppl_lvm.fit_em`, `fit_mcem` and `fit_adversarial`;
any other objective calls `ppl_lvm.fit`. The options of the command are the fields of `FitOptions`,
and the four functions share them by name. An option that only another function has is written in
brackets: `--objective 'em(decay=0.6)'`. An option that is absent from the command line has the
default of the function.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import Field
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

import typer

from ppl_lvm.cli.options import (
    DATA,
    OUTPUT,
    TRAINING,
    AsJson,
    Columns,
    DataOption,
    Guide,
    GuideSettings,
    Header,
    ImageShape,
    Labels,
    Missing,
    Model,
    OneSequence,
    Seed,
    Settings,
    load,
    unused_directory,
)
from ppl_lvm.cli.results import print_json, print_results
from ppl_lvm.core.arguments import checked
from ppl_lvm.core.call_syntax import parse_call, parse_settings
from ppl_lvm.core.messages import did_you_mean
from ppl_lvm.training.options import BRACKETS, PYTHON_ONLY, FitOptions, declared

app = typer.Typer()

_PANELS = {
    **dict.fromkeys(("validation", "weights", "exposure"), DATA),
    **dict.fromkeys(("directory", "resume"), OUTPUT),
}
_HINTS = get_type_hints(FitOptions)  # without ranges, which the function checks


def fit(
    context: typer.Context,
    model: Model,
    data: DataOption,
    guide: Guide = None,
    columns: Columns = None,
    labels: Labels = None,
    missing: Missing = "error",
    header: Header = None,
    image_shape: ImageShape = None,
    one_sequence: OneSequence = False,
    objective: Annotated[
        str | None,
        typer.Option(
            help="Such as 'IWAE(num_particles=5)'; or em, 'em(decay=0.6)', mcem, adversarial "
            "(default: the ELBO).",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Fit a model to data and keep the run in a directory."""
    from ppl_lvm.core import distributed
    from ppl_lvm.fitting.session import SAVED

    context.with_resource(distributed.process_group())
    function, arguments = _front_end(objective)
    arguments |= _keywords(function, context, {**options, "guide": guide})
    per_row = {name: arguments.pop(name, None) for name in ("weights", "exposure")}
    rows = load(data, columns, labels, missing, header, image_shape, one_sequence, **per_row)
    directory = _run_directory(options["directory"], options["resume"], model, rows.name)
    arguments["directory"] = distributed.broadcast_from_first(directory)
    run = function(model, data=rows, **arguments)
    if distributed.rank() == 0:
        print_results(run, as_json)
        if SAVED in run.results.get("not_computed", {}):
            raise typer.Exit(1)


def _option(field: "Field[Any]") -> inspect.Parameter:
    """The option of the command that a field declares."""
    shared = {"settings": Settings, "guide_settings": GuideSettings}
    kind = field.metadata["type"] or _HINTS[field.name]
    if Any in (kind, *get_args(kind)):
        kind = str
    if field.default is None and NoneType not in get_args(kind):
        kind = kind | None
    info = typer.Option(
        "--" + field.name.replace("_", "-"),
        help=field.metadata["help"],
        rich_help_panel=_PANELS.get(field.name, TRAINING),
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default,
        annotation=shared.get(field.name, Annotated[kind, info]),
    )


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of `FitOptions` in place of `**options`."""
    *explicit, _ = inspect.signature(command).parameters.values()
    names = {parameter.name for parameter in explicit}
    fields = [f for f in declared(FitOptions) if _flag(f) and f.name not in names]
    described: Any = command
    described.__signature__ = inspect.Signature([*explicit, *map(_option, fields)])
    return command


def _flag(field: "Field[Any]") -> str:
    """The name of a field on the command line; empty if it has none."""
    flag = field.metadata["flag"]
    return "" if flag in (BRACKETS, PYTHON_ONLY) else flag or field.name


app.command()(_with_options(fit))


def _front_end(objective: str | None) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function that --objective names, and its arguments from the brackets.

    Raises:
        ValueError: the function does not take an argument in the brackets.
    """
    import ppl_lvm

    functions = {n.removeprefix("fit_"): n for n in ppl_lvm.__all__ if n.startswith("fit_")}
    name = (objective or "").partition("(")[0].strip()
    if name not in functions:
        if name.lower() in functions:
            raise ValueError(f"Unknown objective {name!r}.{did_you_mean(name, functions)}")
        return ppl_lvm.fit, {"guide": None, "objective": objective}
    function: Any = getattr(ppl_lvm, functions[name])
    _, arguments = parse_call(objective or "", "objective")
    fields = declared(function.options)
    taken = sorted(f.name for f in fields if f.metadata["flag"] == BRACKETS)
    for argument in sorted(arguments.keys() - set(taken)):
        flags = [_flag(f) for f in fields if f.name == argument and _flag(f)]
        remedy = f"Give it as {_dashed(flags[0])}." if flags else "See ppl-lvm fit --help."
        raise ValueError(f"{name} takes {', '.join(taken)}, got {argument}. {remedy}")
    return function, arguments


def _keywords(function: Any, context: typer.Context, options: dict[str, Any]) -> dict[str, Any]:
    """The options of the command line as the function takes them.

    Raises:
        ValueError: an option that the function does not have.
    """
    taken = {_flag(f): f.name for f in declared(function.options)}
    if "guide" in inspect.signature(function).parameters and function.options is FitOptions:
        taken["guide"] = "guide"
    keywords = {}
    for name in sorted(options):
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE" or name == "directory":
            continue
        if name not in taken:
            front_end = function.__name__.removeprefix("fit_")
            raise ValueError(f"--objective {front_end} takes no {_dashed(name)}; leave it out.")
        keywords[taken[name]] = _value(name, options[name])
    return keywords


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


def _value(name: str, value: Any) -> Any:
    """An option as the function takes it."""
    if name in ("settings", "guide_settings"):
        return parse_settings(value, "--set-guide" if name == "guide_settings" else "--set")
    if name == "validation" and math.isfinite(value) and value == int(value):
        return int(value)  # a number of rows
    return value


def _run_directory(directory: Path | None, resume: bool, model: str, data: str) -> Path:
    if directory is not None:
        return directory
    if resume:
        raise ValueError("--resume needs --directory, the run to continue.")
    return unused_directory(f"{model.rpartition(':')[2]}-{Path(data).stem.partition('(')[0]}")


@app.command()
@checked
def demo(
    directory: Annotated[
        Path | None, typer.Option(help="Directory of the runs (default: runs/demo-1, -2, …).")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit a mixture to Iris and VAEs to the digits, evaluate them and draw figures."""
    from ppl_lvm.cli.demo import main as run_demo

    results = run_demo(directory or unused_directory("demo"), seed=seed)
    if as_json:
        print_json(results)
