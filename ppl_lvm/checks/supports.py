"""Check values and arguments against the supports of distributions."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

from ppl_lvm.checks.enumeration import enumerated_nodes, over_values
from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns
from ppl_lvm.core.distributions import family, innermost, own_masks, unwrap_support
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.signatures import Site, describe


def check_supports(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """Supports of the guide against those of the prior, arguments, and observed values."""
    yield from _guide_against_prior(runs)
    wrong = list(invalid_arguments(runs.guide))
    # A NaN drawn by the guide also appears in the arguments of the model.
    yield from wrong or invalid_arguments(runs.model)
    for issue in _observations(runs.model):
        yield from _over_values(issue, runs)


def _over_values(issue: Issue, runs: TrialRuns) -> Iterator[Issue]:
    """No issue if some value of the enumerated sites has the observed values in its support.

    With validation, as in training: there a distribution that validates its values stops.
    """
    if _allows_gray(issue.site or "", runs):
        return
    node = (enumerated_nodes(runs) or {}).get(issue.site or "")
    if node is None or not over_values(_supported(node), runs).all():
        yield issue
        return
    try:
        with pyro.validation_enabled(True), torch.no_grad():
            node["fn"].log_prob(node["value"])
    except ValueError:
        remedy = (
            f"pyro.sample({issue.site!r}, dist.{family(node['fn'])}(..., validate_args=False), "
            "...), since only some values of the enumerated sites have such values."
        )
        yield replace(issue, remedy=remedy)


def _allows_gray(site: str, runs: TrialRuns) -> bool:
    """True for values in [0, 1] of a Bernoulli with validate_args=False, as in Pyro's VAE."""
    node = runs.model.nodes()[site]
    value = node["value"]
    if family(node["fn"]) != "Bernoulli" or not ((value >= 0) & (value <= 1)).all():
        return False
    model, guide = runs.programs
    with dry_run(model, guide), pyro.validation_enabled(True), torch.no_grad():
        try:
            draws = poutine.trace(guide).get_trace(*runs.batch)
            trace = poutine.trace(poutine.replay(model, draws)).get_trace(*runs.batch)
            trace.nodes[site]["fn"].log_prob(value)
        except Exception:  # with validation, the distribution refuses the values
            return False
    return True


def _supported(node: dict[str, Any]) -> Tensor:
    """1 for each event in its support, 0 for others, in the shape of the log-density."""
    fn = node["fn"]
    shape = torch.broadcast_shapes(node["value"].shape, fn.shape())
    inside: Tensor = fn.support.check(node["value"].expand(shape))
    events = inside.dim() - (len(shape) - len(fn.event_shape))
    return (inside.flatten(inside.dim() - events).all(-1) if events > 0 else inside).float()


def _guide_against_prior(runs: TrialRuns) -> Iterator[Issue]:
    model, guide = runs.model.signature, runs.guide.signature
    assert model is not None
    assert guide is not None
    nodes = runs.guide.nodes()
    for site in guide.sites:
        if site.name not in model or model[site.name].observed or site.observed:
            continue
        prior = model[site.name]
        inside = prior.support.check(nodes[site.name]["value"])
        wider, narrower = _compare(site, prior)
        if not inside.all() or wider:
            yield runs.guide.issue(
                "support-wider",
                "error",
                site.name,
                f"The guide's {site.name!r} ~ {site.distribution} can leave the prior's support, "
                f"{describe(prior.support)}.",
                "There the model's density is zero: the bound is minus infinity or NaN.",
                f"pyro.sample({site.name!r}, {_with_support(prior)})",
            )
        elif narrower:
            yield runs.guide.issue(
                "support-narrower",
                "warning",
                site.name,
                f"The guide's {site.name!r} ~ {site.distribution} has support "
                f"{describe(site.support)}, only a part of the prior's, "
                f"{describe(prior.support)}.",
                "The guide cannot represent the posterior outside of it.",
                f"pyro.sample({site.name!r}, {_with_support(prior)})",
            )


def _with_support(prior: Site) -> str:
    """Code of a distribution whose support is that of the prior."""
    words = describe(prior.support)
    if words in _FAMILIES:
        return _FAMILIES[words]
    if prior.discrete:
        return f"dist.{prior.distribution}(...)"
    return (
        f"dist.TransformedDistribution(dist.Normal(loc, scale), biject_to(support)))  # with the "
        f"support of dist.{prior.distribution}(...)"
    )


# Families of a guide by the description of the support.
_FAMILIES = {
    "real": "dist.Normal(loc, scale)",
    "positive": "dist.LogNormal(loc, scale)",
    "non-negative": "dist.LogNormal(loc, scale)",
    "[0, 1]": "dist.Beta(a, b)",
    "simplex": "dist.Dirichlet(concentration)",
}


def _compare(site: Site, prior: Site) -> tuple[bool, bool]:
    """True if the bounds of the guide's support are wider, and whether they are narrower."""
    if site.distribution == "Delta":  # a point, whose support is always the real line
        return False, False
    bounds, prior_bounds = _bounds(site.support), _bounds(prior.support)
    if bounds is None or prior_bounds is None or site.discrete != prior.discrete:
        return False, False
    if site.distribution == "TransformedDistribution" and bounds[0] == -bounds[1]:
        # torch declares the real line as the image of every affine map.
        return False, False
    wider = bool((bounds[0] < prior_bounds[0]).any() or (bounds[1] > prior_bounds[1]).any())
    narrower = bool((bounds[0] > prior_bounds[0]).any() or (bounds[1] < prior_bounds[1]).any())
    return wider, narrower


def _bounds(support: Any) -> tuple[Tensor, Tensor] | None:
    support = unwrap_support(support)
    infinity = torch.tensor(torch.inf)
    if isinstance(support, type(constraints.real)):
        return -infinity, infinity
    if hasattr(support, "lower_bound") or hasattr(support, "upper_bound"):
        low = torch.as_tensor(getattr(support, "lower_bound", -infinity), dtype=torch.float64)
        high = torch.as_tensor(getattr(support, "upper_bound", infinity), dtype=torch.float64)
        # One value for all elements, since shapes of two programs may differ.
        return low.min(), high.max()
    return None


def invalid_arguments(trial: TrialRun) -> Iterator[Issue]:
    """Invalid arguments of a distribution: a scale below zero, weights that are NaN."""
    for name, node in trial.nodes().items():
        fn = innermost(node["fn"])
        for argument, constraint in getattr(fn, "arg_constraints", {}).items():
            if constraints.is_dependent(constraint) or argument not in fn.__dict__:
                continue
            value = getattr(fn, argument)
            if isinstance(value, Tensor) and not constraint.check(value).all():
                worst = (
                    value[~constraint.check(value)].flatten()
                    if _is_elementwise(constraint)
                    else value
                )
                number = worst.flatten()[0].item()
                yield trial.issue(
                    "argument",
                    "error",
                    name,
                    f"The argument {argument} of {name!r} ~ {type(fn).__name__} must be "
                    f"{describe(constraint)}, but is {number:g} somewhere.",
                    "The density does not exist there; the loss becomes NaN or is meaningless.",
                    _constrained(constraint, number),
                )
                break


def _constrained(constraint: Any, number: float) -> str:
    """Remedy for an argument outside its constraint; `number` is such a value."""
    if number != number:
        return (
            "Trace it back to a logarithm or a root of a number below zero, to 0/0, or to NaN in "
            "the data, and bound it there: .clamp(min=1e-6)."
        )
    words = describe(constraint).replace("lower Cholesky", "lower_cholesky")
    code = (
        f"pyro.param(..., constraint=constraints.{words if words.isidentifier() else 'positive'})"
    )
    squash = {"simplex": "softmax(-1)", "[0, 1]": "sigmoid()"}.get(words, "exp()")
    return f"A parameter: {code}. A network's output or the data: .{squash}."


def _is_elementwise(constraint: Any) -> bool:
    return getattr(constraint, "event_dim", 0) == 0


def _observations(trial: TrialRun) -> Iterator[Issue]:
    for name, node in trial.nodes().items():
        if not node["is_observed"] or node["mask"] is False:
            continue
        fn, value = node["fn"], node["value"]
        try:
            support = fn.support
        except NotImplementedError:
            continue
        if type(fn).__name__ in ("Unit", "Delta") or not isinstance(value, Tensor):
            continue
        support = unwrap_support(support)
        good = support.check(value)
        for mask in _masks(node):
            # A mask of the batch applies to all elements of its events.
            if mask.dim() <= len(fn.batch_shape):
                mask = mask.reshape(mask.shape + (1,) * len(fn.event_shape))
            good = good | ~mask
        if not good.all():
            where = tuple((~good).nonzero()[0].tolist())
            shown = value[where].flatten()[0].item()
            yield trial.issue(
                "value-outside-support",
                "error",
                name,
                f"{int((~good).sum())} observed values of {name!r} lie outside the support of "
                f"{family(fn)}, "
                f"{describe(support)}; the first, at {where}, is {shown:g}.",
                "Their log-probability is minus infinity, NaN, or meaningless.",
                _suited(name, support, value),
            )


def _inside(support: Any) -> float:
    """A value for masked entries.

    It lies inside the support and not on its edge, where a density may be infinite and its gradient
    NaN although the mask hides it.
    """
    for fill in (0.0, 1.0, 0.5):
        near = torch.tensor([fill] if support.is_discrete else [fill - 0.01, fill + 0.01])
        if support.check(near).all():
            return fill
    return 1.0


def _suited(name: str, support: Any, value: Tensor) -> str:
    """Code of a likelihood whose support contains these values."""
    if value.isnan().any():
        return (
            f"pyro.sample({name!r}, dist.….mask(~x.isnan()), obs=x.nan_to_num("
            f"{_inside(support)}))  # excludes the missing values; .mask before .to_event. "
            "ppl_lvm.authoring.without_missing does both."
        )
    low, high = value.min().item(), value.max().item()
    are_integers = bool((value == value.round()).all())
    if are_integers and low >= 0 and high <= 1:
        fit = "dist.Bernoulli(logits=...)"
    elif low >= 0 and high <= 1:
        fit = (
            "dist.ContinuousBernoulli(logits=...), or, as a bound for gray pixels, "
            "dist.Bernoulli(..., validate_args=False)"
        )
    elif are_integers and low >= 0:
        fit = (
            f"dist.Poisson(rate), dist.Categorical(logits=...) with {high + 1:g} logits, or "
            f"dist.Binomial({high:g}, ...)"
        )
    elif low > 0:
        fit = "dist.LogNormal(loc, scale)"
    else:
        fit = "dist.Normal(loc, scale)"
    return f"pyro.sample({name!r}, {fit}, ...) has such values; or correct the data."


def _masks(node: dict[str, Any]) -> Iterator[Tensor]:
    """Masks by poutine.mask, and by `.mask(...)` of the distribution or of one inside it."""
    if isinstance(node["mask"], Tensor):
        yield node["mask"].bool()
    yield from own_masks(node["fn"])
