"""Check Pyro's parameter store for parameters of earlier programs.

A module's parameters enter the store of the process by name. If an earlier program left parameters
of the same names there (a cell that was run again, a second model of the same class), Pyro uses
those, and those of the module are never trained.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from torch import nn

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import run_program
from ppl_lvm.programs.dry_run import dry_run


def check_store(
    model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
) -> tuple[list[Issue], set[str]]:
    """An issue for such a parameter, and the names in the store of other programs."""
    store = pyro.get_param_store()
    stale: dict[str, Issue] = {}
    if not len(store) or pyro.settings.get("module_local_params"):
        return [], set()
    stored = dict(store._params)
    for program in (model, guide):
        if not isinstance(program, nn.Module):
            continue
        owned = {id(parameter) for parameter in program.parameters()}
        with dry_run(program):
            pyro.get_param_store().clear()
            trial = run_program(program, *batch)
        if trial.trace is None:
            continue
        for name, leaf in trial.parameters().items():
            if id(leaf) in owned and name in stored and stored[name] is not leaf:
                stale[name] = trial.issue(
                    "stale-parameter",
                    "warning",
                    name,
                    f"Pyro's store holds another tensor under the name of the parameter {name!r}, "
                    "left by an earlier program.",
                    "Plain pyro.infer.SVI uses and trains that one in its place. (fit uses a "
                    "separate store.)",
                    "pyro.clear_param_store()  # before a new pair is built",
                )
    return list(stale.values())[:1], set(stale)


@contextmanager
def without(names: set[str]) -> Iterator[None]:
    """Remove these parameters from the store inside the scope."""
    store = pyro.get_param_store()
    if not names:
        yield
        return
    with store.scope(store.get_state()):
        for name in names:
            del store[name]
        yield
