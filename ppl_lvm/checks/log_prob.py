"""Check that initial log-probabilities are finite and of comparable size."""

from collections.abc import Iterator

from torch import Tensor

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRuns

# Beyond this ratio of mean log-probabilities, gradients of the smaller one are lost to rounding.
_MAX_RATIO = 1e6


def check_density(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """Log-probabilities that are not finite, at sites without a known error."""
    sizes: dict[str, float] = {}
    explained = {issue.site for issue in known if issue.severity == "error"}
    # An error at a site of the guide explains every density of the model.
    if explained & set(runs.guide.nodes()):
        explained |= set(runs.model.nodes())
    for trial in (runs.guide, runs.model):
        for name, node in trial.nodes().items():
            try:
                log_prob: Tensor = node["fn"].log_prob(node["value"]).detach()
            except (ValueError, RuntimeError, NotImplementedError):
                continue
            if node["mask"] is False:
                continue
            if isinstance(node["mask"], Tensor):
                log_prob = log_prob.where(node["mask"], 0.0)
            if not log_prob.isfinite().all() and name not in explained:
                bad = log_prob[~log_prob.isfinite()]
                where = tuple((~log_prob.isfinite()).nonzero()[0].tolist())
                yield trial.issue(
                    "not-finite",
                    "error",
                    name,
                    f"log p of {name!r} is {bad[0].item():g} at initialisation, at {where}.",
                    "The loss would be NaN or infinite from the first step.",
                    f"Start {name!r} closer to the data, bound its parameters away from zero "
                    "(a floor under scales), or use logits in place of probabilities.",
                )
            elif trial is runs.model and node["is_observed"] and log_prob.numel():
                sizes[name] = log_prob.abs().mean().item()
    large = max(sizes, key=lambda name: sizes[name], default=None)
    if large is not None and len(sizes) > 1:
        rest = max(size for name, size in sizes.items() if name != large)
        if sizes[large] > _MAX_RATIO * max(rest, 1.0):
            yield runs.model.issue(
                "scales-apart",
                "warning",
                large,
                f"{large!r} has log-probabilities of {sizes[large]:.0e} nats per row at the "
                f"start, the other observed sites at most {rest:.0e}.",
                "Their gradients are small beside its own, and are lost to rounding in float32.",
                f"Standardize the data of {large!r}, or learn its scale.",
            )
