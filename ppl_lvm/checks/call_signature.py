"""Check that model and guide accept the batch as arguments."""

import inspect
from collections.abc import Iterator
from typing import Any

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRuns


def check_calls(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """A program that does not accept the batch: model and guide have the same arguments."""
    for program, trial, role in runs.by_role():
        try:
            signature = inspect.signature(program)
        except (TypeError, ValueError):
            continue
        try:
            signature.bind(*runs.batch)
        except TypeError as error:
            names = _argument_names(runs, role)
            yield trial.issue(
                "call-signature",
                "error",
                None,
                f"The {role} cannot be called with the {len(runs.batch)} tensors of the batch: "
                f"{error}.",
                "Model and guide are called with the same arguments, also with those they ignore.",
                f"def {getattr(program, '__name__', 'forward')}({', '.join(names)}):",
            )


def _argument_names(runs: TrialRuns, role: str) -> list[str]:
    """Argument names of the other program, if it accepts the batch."""
    other: Any = runs.programs[role == "model"]
    try:
        signature = inspect.signature(other)
        signature.bind(*runs.batch)
    except (TypeError, ValueError):
        return ["*batch"]
    names = [p.name for p in signature.parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
    return names if len(names) == len(runs.batch) else ["*batch"]
