"""Check that the programs run; locate the failing line."""

import linecache
import re
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.parameter_uses import wrong_size
from ppl_lvm.checks.trial_runs import Program, TrialRun, TrialRuns, place_of
from ppl_lvm.core.distributions import distribution_fault
from ppl_lvm.core.frames import traceback_frames
from ppl_lvm.programs.minibatch import num_rows


def check_failures(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """A program that raises: the line, the site and a remedy."""
    for program, trial, role in runs.by_role():
        if trial.error is None:
            continue
        issue = _parameter_size(runs, trial, role) or failure(trial, trial.error, role)
        norm = batch_norm(program, trial.error)
        if norm is not None and num_rows(runs.batch) == 1:
            several = (runs.num_rows or 1) > 1
            issue = replace(
                issue,
                message=f"The batch has one row, and the {role}'s {norm} has no variance of one.",
                remedy=("batch_size=2 or more, or a" if several else "A")
                + " norm of each row alone, such as nn.LayerNorm.",
            )
        yield issue


def _parameter_size(runs: TrialRuns, trial: TrialRun, role: str) -> Issue | None:
    """The issue of a run that fails at the size of a parameter inside a plate."""
    reason = (str(trial.error).strip().splitlines() or [""])[0]
    if (fault := wrong_size(trial.uses, reason)) is None:
        return None
    name, message, remedy, size = fault
    site, where = _site(trial, reason, None, None)
    prior = runs.standalone[0].signature
    if role == "guide" and prior is not None and site is not None and site in prior:
        event = size in prior[site].event_shape
    else:
        event = any(isinstance(part, Tensor) and size in part.shape[1:] for part in runs.batch)
    at_plate = "Shape mismatch inside plate" in reason
    if event and at_plate:
        return None  # values of one row, whose distribution lacks its event
    return trial.issue(
        "parameter-size",
        "error",
        name,
        f"{message}{where if at_plate else ''}: {type(trial.error).__name__}: {reason}",
        "A parameter inside a plate has one value for each row of the plate, or one.",
        remedy
        + (f"; or, if the {size} are values of one row, dist.….to_event(1)." if at_plate else "."),
    )


def failure(trial: TrialRun, error: Exception, role: str) -> Issue:
    """The issue of a run that raised the error."""
    if (fault := distribution_fault(error)) is not None:
        file, line = place_of(error) or trial.origin or (None, None)
        why = "Training draws and scores every site."
        return Issue(f"{role}-fails", "error", fault[0], fault[1], why, fault[2], file, line)
    reason = (str(error).strip().splitlines() or [""])[0]
    file, line = place_of(error) or trial.origin or (None, None)
    site, where = _site(trial, reason, file, line)
    code, remedy = _remedy(reason, role, site)
    return Issue(
        code,
        "error",
        site,
        f"The {role} does not run: {type(error).__name__}: {reason}{where}",
        "The program must run before it can be trained.",
        remedy,
        file,
        line,
    )


def batch_norm(program: Program, error: Exception | None) -> str | None:
    """Name and class of the batch norm that raised the error, None if none did."""
    modules = program.named_modules() if isinstance(program, nn.Module) else ()
    names = {id(module): f"{name!r} " for name, module in modules}
    for frame, _ in () if error is None else traceback_frames(error):
        module = frame.f_locals.get("self")
        if isinstance(module, _BatchNorm):
            return f"{names.get(id(module), '')}({type(module).__name__})"
    return None


def _site(
    trial: TrialRun, reason: str, file: str | None, line: int | None
) -> tuple[str | None, str]:
    """The site that an error is about, if known, and words for its place."""
    if named := re.search(r"sites? named '([^']+)'|at site (\S+) dim", reason):
        site = named[1] or named[2]
        return site, "" if repr(site) in reason else f" (at {site!r})"
    source = linecache.getline(file or "", line or 0)
    if call := re.search(r"""sample\(\s*["']([^"']+)["']""", source):
        return call[1], f" (at {call[1]!r})"
    for name, place in trial.places.items():
        if place == (file, line):
            return name, f" (at {name!r})"
    last = next(reversed(trial.places), None)
    return last, "" if last is None else f" (after {last!r})"


def _remedy(reason: str, role: str, site: str | None) -> tuple[str, str]:
    """Code and remedy for a message of Pyro or torch."""
    if "collide" in reason:
        return (
            "plates-collide",
            "Give nested plates different dims: dim=-1 for one, dim=-2 for the other.",
        )
    if "Shape mismatch inside plate" in reason:
        return (
            "undeclared-batch",
            f"Make the dimensions of one row an event: pyro.sample({site!r}, dist.….to_event(1), "
            "...). The plate holds the rows alone: pyro.plate('data', len(x), dim=-1).",
        )
    if "Multiple" in reason and "named" in reason:
        return (
            "duplicate-site",
            f'Give every site a different name, in a loop f"{site}_{{i}}". Open a plate '
            "twice by its object: data = pyro.plate('data', len(x), dim=-1), then with data: each "
            "time.",
        )
    if "used as indices" in reason:
        return (
            f"{role}-fails",
            "Data are floats, so that every likelihood takes them. Index with whole numbers: "
            "table[k.long()].",
        )
    if "dtype" in reason or "scalar type" in reason:
        return f"{role}-fails", "Convert both to one type where they meet: x.float(), or k.float()."
    if "positive-definite" in reason:
        return (
            f"{role}-fails",
            "A covariance matrix must be positive definite: pass scale_tril= with a positive "
            "diagonal, or add 1e-4 * torch.eye(k) to it.",
        )
    if "size" in reason or "shape" in reason:
        return (
            f"{role}-fails",
            "Print the shapes on the line named. Rows come first: sum or select columns with "
            "dim=-1, and keep a column with unsqueeze(-1) or keepdim=True.",
        )
    return f"{role}-fails", "Call the program directly on the batch and fix the reported line."
