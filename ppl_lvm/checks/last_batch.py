"""Check that the programs run on the smaller last batch."""

from collections.abc import Iterator
from dataclasses import replace

from ppl_lvm.checks.execution import batch_norm, failure
from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRuns, map_rows, run_program
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.minibatch import num_rows


def check_last_batch(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """Both programs on N mod B rows: a batch norm has no variance of one row."""
    B, N = num_rows(runs.batch), runs.num_rows
    if B is None or N is None or B >= N or N % B == 0:
        return
    last = map_rows(runs.batch, lambda part: part[: N % B])
    model, guide = runs.programs
    with dry_run(model, guide):
        guide_trial = run_program(guide, *last)
        draws = guide_trial.trace if guide_trial.error is None else None
        model_trial = run_program(model, *last, values=draws)
    size = next(b for b in range(B + 1, N + 1) if N % b != 1)
    for role, program, trial in (("model", model, model_trial), ("guide", guide, guide_trial)):
        if trial.error is None or (
            role == "model" and draws is None and not batch_norm(model, trial.error)
        ):
            continue
        issue = failure(trial, trial.error, role)
        norm = batch_norm(program, trial.error)
        subject = f"the {role}'s {norm} has no variance of one row" if norm else issue.message
        yield replace(
            issue,
            code="last-batch",
            message=f"batch_size={B}: of {N} rows the last batch has {N % B}, and {subject}.",
            why="Training would stop at the end of the first epoch.",
            remedy=f"batch_size={size}, of which no batch has one row"
            + (", or a norm of each row alone, such as nn.LayerNorm." if norm else "."),
        )
