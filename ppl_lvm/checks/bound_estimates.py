"""Check the draws that an estimated bound averages over."""

from collections.abc import Iterator

import torch

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRuns
from ppl_lvm.particles.bound_estimate import estimated_site, refuse_other_draws


def check_estimates(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """Sites of the guide that must have the distribution of the model, and have another."""
    model, guide = runs.model.nodes(), runs.guide.nodes()
    site = estimated_site(model)
    if site is None:
        return
    with torch.no_grad():
        for name, node in guide.items():
            log_q = node["fn"].log_prob(node["value"])
            log_p = {n: model[n]["fn"].log_prob(node["value"]) for n in (name,) if n in model}
            try:
                refuse_other_draws(site, log_p, {name: log_q})
            except ValueError:
                yield runs.guide.issue(
                    "other-draws",
                    "error",
                    name,
                    f"{site!r} estimates a bound from draws of a fixed distribution, but the guide "
                    f"draws {name!r} from another one than the model.",
                    "The estimate would not be a bound on log p(x).",
                    "Use the default guide of the model: auto_guide(model, x), or None in fit.",
                )
                return
