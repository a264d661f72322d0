"""Does Pyro's store hold another program's parameters under this one's names?

A module's parameters go by their names into the store of the process. If an earlier program left
some under the same names (a cell that was run again, a second model of the same class), Pyro uses
those, and the module's own are never trained.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from torch import nn

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import run
from ppl_lvm.programs.dry_run import dry_run


def check_store(
    model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
) -> tuple[list[Issue], set[str]]:
    """A finding where that is so, and the names in the store that are not these programs'."""
    store = pyro.get_param_store()
    stale: dict[str, Issue] = {}
    if not len(store) or pyro.settings.get("module_local_params"):
        return [], set()
    held = dict(store._params)
    for program in (model, guide):
        if not isinstance(program, nn.Module):
            continue
        own = {id(parameter) for parameter in program.parameters()}
        with dry_run(program):
            pyro.get_param_store().clear()
            alone = run(program, *batch)
        if alone.trace is None:
            continue
        for name, leaf in alone.parameters().items():
            if id(leaf) in own and name in held and held[name] is not leaf:
                stale[name] = alone.finding(
                    "stale-parameter",
                    "warning",
                    name,
                    f"Pyro's store holds another tensor under the name of the parameter {name!r}, "
                    "left by an earlier program.",
                    "Under plain pyro.infer.SVI that one is used and trained in its place. (fit "
                    "has a store of its own.)",
                    "pyro.clear_param_store()  # before a new pair is made",
                )
    return list(stale.values())[:1], set(stale)


@contextmanager
def without(names: set[str]) -> Iterator[None]:
    """Inside, the store lacks these parameters."""
    store = pyro.get_param_store()
    if not names:
        yield
        return
    with store.scope(store.get_state()):
        for name in names:
            del store[name]
        yield
