"""Do the programs run at all? Called alike, and each to its end, or the line it stopped at."""

import inspect
import linecache
import re
from collections.abc import Iterator
from typing import Any

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns, place_of


def check_calls(look: TrialRuns) -> Iterator[Issue]:
    """A program that does not take the batch: model and guide are called with the same."""
    for program, one, what in _both(look):
        try:
            signature = inspect.signature(program)
        except (TypeError, ValueError):
            continue
        try:
            signature.bind(*look.batch)
        except TypeError as error:
            names = _names(look, what)
            yield one.finding(
                "call-signature",
                "error",
                None,
                f"The {what} cannot be called with the {len(look.batch)} tensors of the batch: "
                f"{error}.",
                "Model and guide are called with the same arguments, whichever they use.",
                f"def {getattr(program, '__name__', 'forward')}({', '.join(names)}):",
            )


def check_failures(look: TrialRuns) -> Iterator[Issue]:
    """A program that does not even run: the line it stopped at."""
    for _, one, what in _both(look):
        if one.error is not None:
            yield _failure(one, one.error, what)


def _both(look: TrialRuns) -> Iterator[tuple[Any, TrialRun, str]]:
    yield look.programs[0], look.model, "model"
    yield look.programs[1], look.guide, "guide"


def _names(look: TrialRuns, what: str) -> list[str]:
    """What the other program calls the batch, where it takes it."""
    other = look.programs[what == "model"]
    try:
        taken = inspect.signature(other)
        taken.bind(*look.batch)
    except (TypeError, ValueError):
        return ["*batch"]
    names = [p.name for p in taken.parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
    return names if len(names) == len(look.batch) else ["*batch"]


def _failure(one: TrialRun, error: Exception, what: str) -> Issue:
    said = (str(error).strip().splitlines() or [""])[0]
    file, line = place_of(error) or one.origin or (None, None)
    site, where = _site(one, said, file, line)
    code, remedy = _remedy(said, what, site)
    return Issue(
        code,
        "error",
        site,
        f"The {what} does not run: {type(error).__name__}: {said}{where}",
        "Nothing can be trained that does not run once.",
        remedy,
        file,
        line,
    )


def _site(one: TrialRun, said: str, file: str | None, line: int | None) -> tuple[str | None, str]:
    """The site that an error is about, as far as can be told, and a word on where that is."""
    if named := re.search(r"sites? named '([^']+)'|at site (\S+) dim", said):
        site = named[1] or named[2]
        return site, "" if repr(site) in said else f" (at {site!r})"
    written = linecache.getline(file or "", line or 0)
    if called := re.search(r"""sample\(\s*["']([^"']+)["']""", written):
        return called[1], f" (at {called[1]!r})"
    for name, place in one.places.items():
        if place == (file, line):
            return name, f" (at {name!r})"
    last = next(reversed(one.places), None)
    return last, "" if last is None else f" (after {last!r})"


def _remedy(said: str, what: str, site: str | None) -> tuple[str, str]:
    """Code and remedy of what Pyro or torch said."""
    if "collide" in said:
        return (
            "plates-collide",
            "Give nested plates different dims: dim=-1 for one, dim=-2 for the other.",
        )
    if "Shape mismatch inside plate" in said:
        return (
            "undeclared-batch",
            f"What belongs to one row is an event: pyro.sample({site!r}, dist.….to_event(1), ...). "
            "The plate holds the rows alone, one for each: pyro.plate('data', len(x), dim=-1).",
        )
    if "Multiple" in said and "named" in said:
        return (
            "duplicate-site",
            f'Give every site a name of its own, in a loop f"{site}_{{i}}". A plate is opened '
            "twice by its object: data = pyro.plate('data', len(x), dim=-1), then with data: each "
            "time.",
        )
    if "dtype" in said or "scalar type" in said:
        return f"{what}-fails", "Bring both to one type where they meet: x.float(), or k.float()."
    if "size" in said or "shape" in said:
        return (
            f"{what}-fails",
            "Print the shapes on the line named. Rows come first: sum or select columns with "
            "dim=-1, and keep a column with unsqueeze(-1) or keepdim=True.",
        )
    return f"{what}-fails", "Call it by itself on the batch, and mend the line named."
