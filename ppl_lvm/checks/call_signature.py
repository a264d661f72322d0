"""Check that model and guide accept the batch as arguments."""

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRuns


def check_calls(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """A program that does not accept the batch: model and guide have the same arguments."""
    for program, trial, role in runs.by_role():
        signature = _signature(program)
        if signature is None:
            continue
        try:
            signature.bind(*runs.batch)
        except TypeError as error:
            B = len(runs.batch)
            names = _argument_names(runs, role)
            arguments = ", ".join(["self"] * isinstance(program, nn.Module) + names)
            definition = f"def {getattr(program, '__name__', 'forward')}({arguments}):"
            yield trial.issue(
                "call-signature",
                "error",
                None,
                f"The {role} cannot be called with the {B} tensor{'s' * (B > 1)} of the data: "
                f"{error}.",
                "Model and guide are called with the same arguments, also with those they ignore.",
                definition
                if names != ["*batch"]
                else f"Pass data with one array for each argument, (x, y), or write {definition}",
            )


def _signature(program: Any) -> inspect.Signature | None:
    """Signature of a program; of a module that of its `forward`."""
    try:
        return inspect.signature(program.forward if isinstance(program, nn.Module) else program)
    except (AttributeError, TypeError, ValueError):
        return None


def _accepts(program: Any, batch: tuple[Any, ...]) -> bool:
    signature = _signature(program)
    try:
        return signature is not None and bool(signature.bind(*batch))
    except TypeError:
        return False


def _argument_names(runs: TrialRuns, role: str) -> list[str]:
    """Argument names of the other program, if it accepts the batch."""
    other: Any = runs.programs[role == "model"]
    signature = _signature(other)
    if signature is None or not _accepts(other, runs.batch):
        return ["*batch"]
    names = [p.name for p in signature.parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
    return names if len(names) == len(runs.batch) else ["*batch"]
