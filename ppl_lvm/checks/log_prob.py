"""Are all log-probabilities finite at the start, and of one order of magnitude?"""

from collections.abc import Iterator

from torch import Tensor

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRuns

# Sites whose log-probabilities differ by more, per number, drown each other's gradients.
_APART = 1e6


def check_density(look: TrialRuns, blamed: set[str]) -> Iterator[Issue]:
    """`blamed` names sites that other findings already explain."""
    sizes: dict[str, float] = {}
    # What the guide draws wrongly makes the model's densities wrong: they are not to blame.
    blamed = blamed | (set(look.model.nodes()) if blamed & set(look.guide.nodes()) else set())
    for one in (look.guide, look.model):
        for name, node in one.nodes().items():
            try:
                log_prob: Tensor = node["fn"].log_prob(node["value"]).detach()
            except (ValueError, RuntimeError, NotImplementedError):
                continue
            if node["mask"] is False:
                continue
            if isinstance(node["mask"], Tensor):
                log_prob = log_prob.where(node["mask"], 0.0)
            if not log_prob.isfinite().all() and name not in blamed:
                bad = log_prob[~log_prob.isfinite()]
                where = tuple((~log_prob.isfinite()).nonzero()[0].tolist())
                yield one.finding(
                    "not-finite",
                    "error",
                    name,
                    f"log p of {name!r} is {bad[0].item():g} at initialisation, at {where}.",
                    "The loss would be NaN or infinite from the first step.",
                    f"Start {name!r} closer to the data, bound its parameters away from zero "
                    "(a floor under scales), or use logits in place of probabilities.",
                )
            elif one is look.model and node["is_observed"] and log_prob.numel():
                sizes[name] = log_prob.abs().mean().item()
    large = max(sizes, key=lambda name: sizes[name], default=None)
    if large is not None and len(sizes) > 1:
        rest = max(size for name, size in sizes.items() if name != large)
        if sizes[large] > _APART * max(rest, 1.0):
            yield look.model.finding(
                "scales-apart",
                "warning",
                large,
                f"{large!r} has log-probabilities of {sizes[large]:.0e} nats a datum at the "
                f"start, the other observed sites at most {rest:.0e}.",
                "Its gradient drowns theirs; float32 rounds theirs away.",
                f"Standardise the data of {large!r}, or learn its scale.",
            )
