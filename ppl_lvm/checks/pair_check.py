"""Check a model and its guide before training.

    issues = check(model, guide, *batch)
    print(issues)                 # and the objectives that support the pair
    assert issues.ok

The pair is run a few times on the batch and never trained. The caller's random state, parameter
store and modules are restored afterwards.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyro
import torch

from ppl_lvm.checks.batch_use import check_observed_batch, check_unchanged_batch
from ppl_lvm.checks.bound_estimates import check_estimates
from ppl_lvm.checks.call_signature import check_calls
from ppl_lvm.checks.determinism import check_repeats
from ppl_lvm.checks.enumeration import check_enumeration
from ppl_lvm.checks.execution import check_failures
from ppl_lvm.checks.issues import Issue, Issues, ObjectiveSupport
from ppl_lvm.checks.jumps import check_jumps
from ppl_lvm.checks.last_batch import check_last_batch
from ppl_lvm.checks.log_prob import check_density, check_scores
from ppl_lvm.checks.objectives import supported_objectives
from ppl_lvm.checks.param_store import check_store, without
from ppl_lvm.checks.parameters import check_parameters
from ppl_lvm.checks.plates import check_plates
from ppl_lvm.checks.row_dependence import check_mixed_rows, check_rows
from ppl_lvm.checks.shapes import check_shapes
from ppl_lvm.checks.sites import check_sites
from ppl_lvm.checks.supports import check_supports, invalid_arguments
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns, run_program, run_trials
from ppl_lvm.core.distributions import named_distribution_errors
from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.validate import Count
from ppl_lvm.programs.batch_versions import copies
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.messenger_guide import plain_guide
from ppl_lvm.programs.pair import copy_programs
from ppl_lvm.programs.row_plates import known_row_plates, row_plates
from ppl_lvm.programs.sources import GuideFactory


@dataclass(frozen=True)
class Check:
    """One check of a pair.

    Attributes:
        run: yields the issues; called with the runs and the issues of the checks before.
        stops: whether an issue of this check ends the list.
        requires_no_error: whether it is left out after an error.
    """

    run: Callable[[TrialRuns, list[Issue]], Iterable[Issue]]
    stops: bool = False
    requires_no_error: bool = False


CHECKS = (
    Check(check_calls, stops=True),
    Check(check_unchanged_batch, stops=True),
    Check(check_failures, stops=True),
    Check(check_scores, stops=True),
    Check(check_sites),
    Check(check_shapes),
    Check(check_plates),
    Check(check_supports),
    Check(check_repeats),
    Check(check_parameters),
    Check(check_rows),
    Check(check_density),
    Check(check_last_batch, requires_no_error=True),
    Check(check_mixed_rows, requires_no_error=True),
    Check(check_observed_batch, requires_no_error=True),
    Check(check_enumeration, requires_no_error=True),
    Check(check_estimates, requires_no_error=True),
    Check(check_jumps, requires_no_error=True),
)


@public_call
@named_distribution_errors()
def check(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *batch: Any,
    num_rows: Count | None = None,
) -> Issues:
    """Find the faults of a pair on the batch it is to be trained on (some rows are enough).

    Args:
        model, guide: the programs; None is the default guide.
        batch: arguments of both, rows first.
        num_rows: N where the batch is one of many mini-batches. Dependence on the rows of this
            batch is then an error, and a note otherwise.
    """
    batch = copies(batch)
    if guide is None:
        if not (issues := check_model(model, *batch)).ok:
            return issues
        with preserve_rng(), pyro.get_param_store().scope():
            guide = GuideFactory(None).make(model, batch)
    if plain_guide(guide) is not guide:  # its first run makes its parameters
        model, guide = copy_programs(model, guide)
    with torch.enable_grad():
        stale, names = check_store(model, guide, *batch)
        with without(names), known_row_plates(row_plates(model, guide, batch=batch)):
            new, objectives = _check(run_trials(model, guide, *batch, num_rows=num_rows))
    return Issues([*stale, *new], objectives)


def check_model(model: Callable[..., Any], *batch: Any) -> Issues:
    """Find the faults that keep a model from running on a batch, before it has a guide."""

    def no_guide(*batch: Any) -> None:
        pass

    batch = copies(batch)
    with torch.enable_grad(), dry_run(model):
        trial, none = run_program(model, *batch), TrialRun()
    runs = TrialRuns(trial, none, batch, (model, no_guide), (trial, none))
    issues = [*check_unchanged_batch(runs, []), *check_calls(runs, [])]
    issues = issues or [*check_failures(runs, [])]
    return Issues(issues or [*invalid_arguments(trial)])


def _check(runs: TrialRuns) -> tuple[list[Issue], tuple[ObjectiveSupport, ...]]:
    issues: list[Issue] = []
    for each in CHECKS:
        if each.requires_no_error and _has_error(issues):
            continue
        new = list(each.run(runs, issues))
        issues += new
        if new and each.stops:
            return issues, ()
    return issues, () if _has_error(issues) else supported_objectives(runs)


def _has_error(issues: list[Issue]) -> bool:
    return any(issue.severity == "error" for issue in issues)
