"""The ways to fit, by the name that stands in --objective.

    em            expectation-maximisation             ppl_lvm.fitting.em.fit_em
    mcem          its E-step by Markov chains          ppl_lvm.fitting.monte_carlo_em.fit_mcem
    adversarial   a generator against a discriminator  ppl_lvm.fitting.adversarial.fit_adversarial
    any other     the gradient of a bound              ppl_lvm.fitting.svi.fit

Each takes some of the options of `ppl-lvm fit`; one that it has no use for is a mistake. What is
not given on the command line is the function's default.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import typer

from ppl_lvm.core.call_syntax import parse_call, parse_settings
from ppl_lvm.programs.loading import load_program

# What the command itself reads: it says which model and which rows, and how the result is told.
_ALWAYS = {"model", "data", "columns", "labels", "missing", "header", "image_shape"}
_ALWAYS |= {"objective", "as_json"}


def _same(names: str) -> dict[str, str]:
    return {name: name for name in names.split()}


_KEPT = _same("settings validation seed directory checkpoint_seconds resume")


@dataclass(frozen=True)
class FitMethod:
    """A function that fits.

    Attributes:
        function: its address; it takes model, data and the rest by name.
        options: option of the command -> what the function calls it.
        arguments: what may stand in the brackets of --objective 'name(argument=value)'.
    """

    function: str
    options: Mapping[str, str]
    arguments: frozenset[str] = field(default_factory=frozenset)


FIT_METHODS = {
    "em": FitMethod(
        "ppl_lvm.fitting.em:fit_em",
        _KEPT | _same("batch_size restarts") | {"num_steps": "max_iterations"},
        frozenset({"tolerance", "decay"}),
    ),
    "mcem": FitMethod(
        "ppl_lvm.fitting.monte_carlo_em:fit_mcem",
        _KEPT | _same("guide guide_settings") | {"num_steps": "max_iterations"},
        frozenset({"num_draws", "warmup", "guide_steps"}),
    ),
    "adversarial": FitMethod(
        "ppl_lvm.fitting.adversarial:fit_adversarial",
        _KEPT | _same("num_steps batch_size optimizer"),
        frozenset({"objective", "discriminator_steps", "penalty"}),
    ),
}
_GRADIENT = FitMethod(
    "ppl_lvm.fitting.svi:fit",
    _KEPT
    | _same("guide guide_settings objective optimizer schedule num_steps num_epochs batch_size")
    | _same("patience clip_norm kl_weight kl_annealing restarts engine steps_per_call"),
)


def run(context: typer.Context, values: dict[str, Any], data: Any, directory: Any) -> Any:
    """Fit in the way that --objective names.

    Args:
        context: tells which options were given.
        values: every option by its name in Python.
        data, directory: what became of --data and --directory.

    Raises:
        ValueError: an option or argument that this way does not take.
    """
    name, arguments = "fit", dict[str, Any]()
    word = (values["objective"] or "").partition("(")[0].strip()
    if word not in FIT_METHODS and word.lower() in FIT_METHODS:
        raise ValueError(f"There is no objective {word!r}. Did you mean {word.lower()}?")
    if word in FIT_METHODS:
        name, arguments = parse_call(values["objective"])
    way = FIT_METHODS.get(name, _GRADIENT)
    for argument in sorted(arguments.keys() - way.arguments):
        takes = ", ".join(sorted(way.arguments))
        apart = [option for option, taken in way.options.items() if taken == argument]
        remedy = (
            f"Give it as --{apart[0].replace('_', '-')}." if apart else "See ppl-lvm fit --help."
        )
        raise ValueError(f"{name} takes {takes}, got {argument}. {remedy}")
    asked: dict[str, Any] = {"directory": directory}
    for option in sorted(values.keys() & context.params.keys() - {"directory"}):
        source = context.get_parameter_source(option)
        if source is None or source.name != "COMMANDLINE":
            continue
        if option in way.options:
            asked[way.options[option]] = _read(option, values[option])
        elif option not in _ALWAYS:
            said = "--" + option.replace("_", "-")
            raise ValueError(f"--objective {name} takes no {said}; leave it out.")
    if way is _GRADIENT:
        asked.setdefault("guide", None)
    return load_program(way.function)(values["model"], data=data, **asked, **arguments)


def _read(option: str, value: Any) -> Any:
    """An option as the function takes it."""
    if option in ("settings", "guide_settings"):
        return parse_settings(value)
    if option == "validation" and value >= 1:
        return int(value)  # a number of rows
    return value
