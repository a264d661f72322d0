"""Check that initial log-probabilities are finite and of comparable size."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.checks.enumeration import (
    enumerated_in_model,
    enumerated_nodes,
    marginal_loss,
    over_values,
)
from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns
from ppl_lvm.core.distributions import distribution_fault, family, is_point

# Beyond this ratio of mean log-probabilities, gradients of the smaller one are lost to rounding.
_MAX_RATIO = 1e6


def check_scores(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """Distributions without a log_prob that training can use."""
    why = "Training differentiates the density of every site."
    for _, trial, _ in runs.by_role():
        for name, site in trial.nodes().items():
            if family(site["fn"]) == "GaussianScaleMixture":
                yield trial.issue(
                    "no-density",
                    "error",
                    name,
                    f"{name!r} ~ GaussianScaleMixture: its log_prob changes its result in place, "
                    "so that it has no gradient, and takes one value without a batch.",
                    why,
                    f"pyro.sample({name!r}, dist.MixtureSameFamily(dist.Categorical(logits=...), "
                    "dist.Normal(0, scales).to_event(1)))",
                )
                continue
            try:
                site["fn"].log_prob(site["value"])
            except ValueError:
                continue  # a value outside the support, or of another shape: see the other checks
            except Exception as error:
                if (fault := distribution_fault(error)) is not None and not _is_shape(error):
                    yield trial.issue("no-density", "error", name, fault[1], why, fault[2])


def _is_shape(error: Exception) -> bool:
    """True for shapes that do not fit, which `check_shapes` explains."""
    text = str(error)
    return any(word in text for word in ("size", "shape", "broadcast", "dtype"))


def check_density(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """Log-probabilities that are not finite, at sites without a known error.

    A value of an enumerated site may be impossible (-inf); only its sum must be finite.
    """
    sizes: dict[str, float] = {}
    explained = {issue.site for issue in known if issue.severity == "error"}
    # An error at a site of the guide explains every density of the model.
    if explained & set(runs.guide.nodes()):
        explained |= set(runs.model.nodes())
    enumerated = enumerated_nodes(runs)
    densities = [(runs.guide, runs.guide.nodes()), (runs.model, enumerated or runs.model.nodes())]
    for trial, nodes in densities:
        for name, node in nodes.items():
            log_prob = _log_prob(node)
            if log_prob is None:
                continue
            if trial is runs.model:
                log_prob = over_values(log_prob, runs)
            if not log_prob.isfinite().all() and name not in explained:
                explained.add(name)
                yield _not_finite(trial, name, log_prob, enumerated is not None)
            elif trial is runs.model and node["is_observed"] and log_prob.numel():
                sizes[name] = log_prob.abs().mean().item()
    if enumerated is not None and not explained and (issue := _impossible(runs)) is not None:
        yield issue
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


def _log_prob(node: dict[str, Any]) -> Tensor | None:
    """log p of a site, zero where it is masked; None where it is not defined."""
    if node["mask"] is False:
        return None
    try:
        log_prob: Tensor = node["fn"].log_prob(node["value"]).detach()
    except (ValueError, RuntimeError, NotImplementedError, AssertionError):
        return None  # a later check says why
    return log_prob.where(node["mask"], 0.0) if isinstance(node["mask"], Tensor) else log_prob


def _not_finite(trial: TrialRun, name: str, log_prob: Tensor, enumerated: bool) -> Issue:
    bad = log_prob[~log_prob.isfinite()]
    where = tuple((~log_prob.isfinite()).nonzero()[0].tolist())
    every = ", for every value of the enumerated sites" if enumerated and bad[0] < 0 else ""
    if is_point(trial.nodes()[name]["fn"]):
        return trial.issue(
            "point-mass",
            "error",
            name,
            f"{name!r} is a point mass (Delta) of the program, and the value drawn by the guide is "
            "another one.",
            "Its density is 0 at every other value, so the loss would be infinite.",
            f"Write pyro.deterministic({name!r}, value), which no guide samples, in place of "
            "pyro.sample; or a parameter, or a density with a width.",
        )
    return trial.issue(
        "not-finite",
        "error",
        name,
        f"log p of {name!r} is {bad[0].item():g} at initialization, at {where}{every}.",
        "The loss would be NaN or infinite from the first step.",
        f"Start {name!r} closer to the data, bound its parameters away from zero "
        "(a floor under scales), or use logits in place of probabilities.",
    )


def _impossible(runs: TrialRuns) -> Issue | None:
    """Sites that exclude different values of an enumerated site, so that none is left."""
    try:
        with torch.no_grad():
            loss = marginal_loss(runs)
    except Exception:  # every exception of a user's program is an issue of a later check
        return None
    if math.isfinite(loss):
        return None
    assert runs.model.signature is not None
    site = next(s.name for s in runs.model.signature.latents if enumerated_in_model(s, runs))
    return runs.model.issue(
        "not-finite",
        "error",
        site,
        f"log p, summed over the values of {site!r}, is {-loss:g} at initialization, although each "
        "site allows some value.",
        "The loss would be NaN or infinite from the first step.",
        f"Let at least one value of {site!r} be possible at all sites of a row together.",
    )
