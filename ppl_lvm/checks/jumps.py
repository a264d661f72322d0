"""Check log-densities for jumps in reparameterized draws."""

import warnings
from collections.abc import Iterator
from functools import partial

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRuns
from ppl_lvm.estimators.parts.jumps import Jump, find_jump
from ppl_lvm.particles.log_prob_tables import run_pair
from ppl_lvm.particles.structure import analyze_pair
from ppl_lvm.programs.dry_run import dry_run


def check_jumps(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """A comparison, a rounding or an index that makes a log-density jump."""
    model, guide = runs.programs
    with dry_run(model, guide, seed=0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            structure = analyze_pair(model, guide, runs.batch, {}, any_plate=True)
            run = partial(run_pair, model, guide, runs.batch, {}, structure)
            jump = find_jump(run, structure)
        except Exception:  # every estimator stops with this error, and names it
            return
    if jump is not None:
        yield Issue(
            "jump",
            "warning",
            jump.site,
            f"A log-density jumps in the draws of {jump.site!r} ({jump.operation}).",
            "Pathwise gradients (ELBO, IWAE, Trace_ELBO) miss what the jump contributes.",
            Jump.REMEDY,
            jump.file,
            jump.line,
        )
