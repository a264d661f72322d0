"""Does this guide fit this model? Findings, each with its remedy.

    findings = check(model, guide, *batch)
    print(findings)                 # and which objectives suit the pair
    assert findings.ok

The pair is run a few times on the batch and never trained; the caller's random state, parameter
store and modules are as they were afterwards. Each file here holds one family of findings.
"""

from collections.abc import Callable
from typing import Any

import torch

from ppl_lvm.checks.bound_estimates import check_estimates
from ppl_lvm.checks.determinism import check_repeats
from ppl_lvm.checks.enumeration import check_enumeration
from ppl_lvm.checks.execution import check_calls, check_failures
from ppl_lvm.checks.issues import Issue, Issues, ObjectiveSupport
from ppl_lvm.checks.log_prob import check_density
from ppl_lvm.checks.objectives import suitability
from ppl_lvm.checks.param_store import check_store, without
from ppl_lvm.checks.parameters import check_parameters
from ppl_lvm.checks.plates import check_plates
from ppl_lvm.checks.row_dependence import check_rows
from ppl_lvm.checks.sites import check_shapes, check_sites
from ppl_lvm.checks.supports import check_supports
from ppl_lvm.checks.trial_runs import run_trials

__all__ = ["Issue", "Issues", "ObjectiveSupport", "check"]


def check(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *batch: Any,
    num_rows: int | None = None,
) -> Issues:
    """What is wrong with a pair, on the batch it is to be trained on (some rows are enough).

    Args:
        model, guide: the programs.
        batch: what both are called with, rows first.
        num_rows: N where the batch is one of many mini-batches. What belongs to the rows of
            this batch alone is then an error, and a note otherwise.
    """
    with torch.enable_grad():
        stale, names = check_store(model, guide, *batch)
        with without(names):
            found, estimators = _checked(model, guide, batch, num_rows)
    return Issues([*stale, *found], estimators)


def _checked(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    batch: tuple[Any, ...],
    num_rows: int | None,
) -> tuple[list[Issue], tuple[ObjectiveSupport, ...]]:
    seen = run_trials(model, guide, *batch)
    failed = list(check_calls(seen)) or list(check_failures(seen))
    if failed:
        return failed, ()
    pairing = [*check_sites(seen), *check_shapes(seen)]
    wrong = {finding.site for finding in pairing if finding.severity == "error"}
    single = [*check_plates(seen), *check_supports(seen), *check_repeats(seen)]
    # One fault shows in many ways: what it explains is not reported again.
    explained = ("undeclared-batch", "outside-data-plate")
    single = [each for each in single if each.code not in explained or each.site not in wrong]
    found = [*pairing, *single, *check_parameters(seen), *check_rows(seen, num_rows)]
    blamed = {finding.site for finding in found if finding.severity == "error"}
    found += check_density(seen, {site for site in blamed if site is not None})
    if not any(finding.severity == "error" for finding in found):
        found += check_enumeration(seen)
        found += check_estimates(seen)
    sound = not any(finding.severity == "error" for finding in found)
    return found, suitability(seen) if sound else ()
