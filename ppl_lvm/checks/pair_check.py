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
from ppl_lvm.checks.issues import Finding, Findings, Suitability
from ppl_lvm.checks.log_prob import check_density
from ppl_lvm.checks.objectives import suitability
from ppl_lvm.checks.param_store import check_store, without
from ppl_lvm.checks.parameters import check_parameters
from ppl_lvm.checks.plates import check_plates
from ppl_lvm.checks.row_dependence import check_rows
from ppl_lvm.checks.sites import check_shapes, check_sites
from ppl_lvm.checks.supports import check_supports
from ppl_lvm.checks.trial_runs import look

__all__ = ["Finding", "Findings", "Suitability", "check"]


def check(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *batch: Any,
    stands_for: int | None = None,
) -> Findings:
    """What is wrong with a pair, on the batch it is to be trained on (some rows are enough).

    Args:
        model, guide: the programs.
        batch: what both are called with, rows first.
        stands_for: N where the batch is one of many mini-batches. What belongs to the rows of
            this batch alone is then an error, and a note otherwise.
    """
    with torch.enable_grad():
        stale, names = check_store(model, guide, *batch)
        with without(names):
            found, estimators = _checked(model, guide, batch, stands_for)
    return Findings([*stale, *found], estimators)


def _checked(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    batch: tuple[Any, ...],
    stands_for: int | None,
) -> tuple[list[Finding], tuple[Suitability, ...]]:
    seen = look(model, guide, *batch)
    failed = list(check_calls(seen)) or list(check_failures(seen))
    if failed:
        return failed, ()
    pairing = [*check_sites(seen), *check_shapes(seen)]
    wrong = {finding.site for finding in pairing if finding.severity == "error"}
    single = [*check_plates(seen), *check_supports(seen), *check_repeats(seen)]
    # One fault shows in many ways: what it explains is not reported again.
    explained = ("undeclared-batch", "outside-data-plate")
    single = [each for each in single if each.code not in explained or each.site not in wrong]
    found = [*pairing, *single, *check_parameters(seen), *check_rows(seen, stands_for)]
    blamed = {finding.site for finding in found if finding.severity == "error"}
    found += check_density(seen, {site for site in blamed if site is not None})
    if not any(finding.severity == "error" for finding in found):
        found += check_enumeration(seen)
        found += check_estimates(seen)
    sound = not any(finding.severity == "error" for finding in found)
    return found, suitability(seen) if sound else ()
