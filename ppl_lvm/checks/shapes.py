"""Check shapes and plates of sites in model and guide."""

from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions.hmm import HiddenMarkovModel
from pyro.poutine.util import site_is_factor
from torch import Tensor

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.plates import has_rows_of
from ppl_lvm.checks.sites import in_plates
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns
from ppl_lvm.core.distributions import added_event_dims, unwrap
from ppl_lvm.programs.minibatch import frame_size
from ppl_lvm.programs.signatures import Signature, Site


def check_shapes(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """Event dimensions, shapes and plates of the sites of both programs."""
    model, guide = runs.standalone[0].signature or runs.model.signature, runs.guide.signature
    assert model is not None
    assert guide is not None
    followed = runs.model.signature or model
    for site in guide.sites:
        if site.name not in model or model[site.name].observed or site.observed:
            continue
        prior = model[site.name]
        subsampled = any(guide.plate(n).size != guide.plate(n).full_size for n in site.plates)
        if site.name in followed and _shape(site) == _shape(followed[site.name]):
            prior = followed[site.name]  # prior draws broadcast, those of the guide do not
        if subsampled and site.name in followed:
            prior = followed[site.name]  # the model takes the guide's subsample
        if len(site.event_shape) != len(prior.event_shape):
            yield _event_dim(runs, site, prior)
        # By name, since the order does not matter.
        elif _dims(site, guide) != _dims(prior, followed if subsampled else model):
            if has_rows_of(model, runs.batch):  # else the fault is the model's: "plate-size"
                yield _plates(runs, site, prior, guide, model)
        elif site.shape != prior.shape:
            yield runs.guide.issue(
                "shape",
                "error",
                site.name,
                f"{site.name!r} has shape {tuple(site.shape)} in the guide and "
                f"{tuple(prior.shape)} in the model.",
                "Broadcasting would combine values with the densities of others.",
                f"In the guide: pyro.sample({site.name!r}, dist.{site.distribution}(...)), its "
                f"parameters of shape {tuple(prior.event_shape)}, or {tuple(prior.shape)} with "
                "the rows.",
            )
    together = {issue.site for issue in _observed_values(runs.model)}
    # With draws of a guide of the wrong shape alone, the fault is the guide's; with prior draws
    # alone, which broadcast, the program is right.
    for issue in _observed_values(
        runs.standalone[0] if runs.standalone[0].signature else runs.model
    ):
        if issue.site in together:
            yield issue


def _shape(site: Site) -> tuple[torch.Size, torch.Size]:
    return site.batch_shape, site.event_shape


def _observed_values(trial: TrialRun) -> Iterator[Issue]:
    """Observed values that broadcast with their distribution."""
    for name, node in trial.nodes().items():
        value = node["value"]
        if not node["is_observed"] or not isinstance(value, Tensor) or site_is_factor(node):
            continue
        expected, shape = observed_shape(node), value.shape
        try:
            fits = torch.broadcast_shapes(shape, expected) == expected
        except RuntimeError:
            fits = False
        if not fits:
            yield trial.issue(
                "value-shape",
                "error",
                name,
                f"{name!r} observes values of shape {tuple(shape)}, where its distribution has "
                f"{tuple(expected)}.",
                "Every value would be compared with every row's distribution.",
                _shape_remedy(name, shape, expected),
            )


def observed_shape(node: dict[str, Any]) -> torch.Size:
    """Shape that values of a site's distribution have; a plate without a size has as many."""
    fn = node["fn"]
    frames = {f.dim: f for f in node["cond_indep_stack"] if f.size == -1}
    rank = max([len(fn.batch_shape), *(-dim for dim in frames)])
    batch = [1] * (rank - len(fn.batch_shape)) + list(fn.batch_shape)
    for dim, frame in frames.items():
        batch[dim] = frame_size(node, frame)
    event = list(fn.event_shape)
    inner, value = unwrap(fn), node["value"]
    if isinstance(inner, HiddenMarkovModel) and inner.duration is None:
        # Homogeneous in time: as many steps as the value has.
        dim = -len(inner.event_shape)
        event[dim] = value.shape[dim] if value.dim() >= -dim else 1
    return torch.Size(batch + event)


def _shape_remedy(name: str, shape: torch.Size, expected: torch.Size) -> str:
    if shape == (*expected, 1):
        return f"pyro.sample({name!r}, ..., obs=x.squeeze(-1)), with the observed values as x."
    if len(shape) > len(expected) and shape[: len(expected)] == expected:
        more = len(shape) - len(expected)
        parameters = tuple(shape[len(expected) :])
        return (
            f"pyro.sample({name!r}, dist.….to_event({more}), obs=x), with parameters of shape "
            f"{parameters}, so that a row is one event."
        )
    return f"pyro.sample({name!r}, ..., obs=x) with x of shape {tuple(expected)}."


def _event_dim(runs: TrialRuns, site: Site, prior: Site) -> Issue:
    dims = added_event_dims(runs.guide.nodes()[site.name]["fn"])
    dims += len(prior.event_shape) - len(site.event_shape)
    event = f".to_event({dims})" if dims > 0 else ""
    return runs.guide.issue(
        "event-dim",
        "error",
        site.name,
        f"{site.name!r} has event shape {tuple(site.event_shape)} in the guide and "
        f"{tuple(prior.event_shape)} in the model.",
        "An event has one log-probability: the two would be sums over different dimensions.",
        f"In the guide: pyro.sample({site.name!r}, dist.{site.distribution}(...){event}), so that "
        f"an event is {tuple(prior.event_shape)}.",
    )


def _plates(runs: TrialRuns, site: Site, prior: Site, guide: Signature, model: Signature) -> Issue:
    """Plates of the same site that differ by name, dim or size."""
    code = in_plates(f"pyro.sample({site.name!r}, ...)", prior, model)
    return runs.guide.issue(
        "plates",
        "error",
        site.name,
        f"{site.name!r} stands in {_named(site, guide)} in the guide and in "
        f"{_named(prior, model)} in the model.",
        "Plates declare independence and the scale of mini-batches; the two must agree.",
        f"In the guide: {code}",
    )


def _dims(site: Site, signature: Signature) -> dict[str, tuple[int | None, int, int]]:
    plates = [signature.plate(name) for name in site.plates]
    # The plate over rows may have another name in the guide.
    return {
        "rows" if plate.over_rows else f"plate {plate.name}": (
            plate.dim,
            plate.size,
            plate.full_size,
        )
        for plate in plates
    }


def _named(site: Site, signature: Signature) -> str:
    plates = [signature.plate(name) for name in site.plates]
    listed = [f"plate {p.name!r} (dim {p.dim}, size {p.size})" for p in plates]
    return " inside ".join(reversed(listed)) or "no plate"
