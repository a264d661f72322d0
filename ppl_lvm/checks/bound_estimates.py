"""Does the guide draw what an estimated bound averages over from the model's own distributions?"""

from collections.abc import Iterator

import torch

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRuns
from ppl_lvm.particles.bound_estimate import estimated_site, refuse_other_draws


def check_estimates(look: TrialRuns) -> Iterator[Issue]:
    model, drawn = look.model.nodes(), look.guide.nodes()
    site = estimated_site(model)
    if site is None:
        return
    with torch.no_grad():
        for name, node in drawn.items():
            log_q = node["fn"].log_prob(node["value"])
            log_p = {n: model[n]["fn"].log_prob(node["value"]) for n in (name,) if n in model}
            try:
                refuse_other_draws(site, log_p, {name: log_q})
            except ValueError:
                yield look.guide.finding(
                    "other-draws",
                    "error",
                    name,
                    f"{site!r} estimates a bound from draws of a fixed distribution, but the guide "
                    f"draws {name!r} from another than the model.",
                    "The estimate would be of something else, and no bound on log p(x).",
                    "Use the guide that the model brings: auto_guide(model, x), or None in fit.",
                )
                return
