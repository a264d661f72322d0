"""First screen of a report: numbers, picture, names."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.core.distributions import unwrap_support
from ppl_lvm.diagnostics.finding import format_with_error
from ppl_lvm.report.run_figure import Picture
from ppl_lvm.report.run_view import RunView
from ppl_lvm.runs.run import Run

# Figures in the order of preference for the first screen.
LEAD = (
    *("topics", "states", "mixture", "filled_in", "reconstructions", "predictions", "posterior"),
    *("latent_plane", "sequences", "density", "samples", "training"),
)
Number = tuple[str, str]  # a value with its unit, and what it is


def kinds(view: RunView, slugs: Sequence[str]) -> set[str]:
    """The purposes that a model has, of `USES`."""
    drawn = bool(view.shared) or bool(view.codes.keys() - view.summed)
    groups = bool(view.classes) or bool({"topics", "states"} & set(slugs))
    return {
        "density",
        "samples",
        *(["codes"] if view.continuous else []),
        *(["uncertainty"] if drawn else []),
        *(["groups"] if groups else []),
    }


def lead(pictures: Mapping[str, Picture], unfinished: bool) -> Picture | None:
    """The picture of the first screen: of the training where that has not finished."""
    order = ("training", *LEAD) if unfinished else LEAD
    return next((pictures[slug] for slug in order if slug in pictures), None)


def numbers(run: Run, view: RunView, train: Tensor, details: Mapping[str, Any]) -> list[Number]:
    """At most three: log p(x), its distance to independent columns, and the model's own."""
    results = run.results
    value, result = results.get("log_evidence"), []
    if value is not None:
        error = results.get("log_evidence_standard_error")
        rows = f"{results.get('log_evidence_rows', '')} {results['log_evidence_of']}".strip()
        kind = "log p(x)"
        if results.get("log_evidence_kind") in ("predictive", "pointwise"):
            kind = "log p(x | training rows)"
        bound = (results.get("log_evidence_share_of_high_k_hat") or 0) > 0.5
        text = "at least " * bound + f"{format_with_error(value, error)} nats per row"
        result.append((text, f"{kind} of {rows}"))
    elif results.get("bound") is not None:
        text = format_with_error(results["bound"], results.get("bound_monte_carlo_error"))
        value = results["bound"]
        result.append((f"{text} nats per row", "bound on log p(x), training rows"))
    baseline = independent_columns(view, train)
    if value is not None and baseline is not None:
        difference = value - baseline
        word = "better" if difference > 0 else "worse"
        result.append((f"{abs(difference):.3g} nats per row", f"{word} than independent columns"))
    return [*result, _own_number(details, run)][:3]


def _own_number(details: Mapping[str, Any], run: Run) -> Number:
    """The number that says most about this kind of model."""
    mixtures, latents = details.get("mixtures"), details.get("latents")
    if mixtures is not None:
        return f"{mixtures.used} of {len(mixtures.sizes)}", "components that explain a row or more"
    if latents is not None:
        text = f"{latents.num_active} of {len(latents.active)}"
        if latents.information is None:
            return text, "latents in use"
        return text, f"latents in use, {latents.information:.3g} nats of information on a row"
    count = sum(leaf.numel() for leaf in run.pair.unconstrained_parameters.values())
    return f"{count:,}", "parameters"


def independent_columns(view: RunView, train: Tensor) -> float | None:
    """log p(x) in nats per row of a model of independent columns, fitted to the training rows.

    Columns of numbers are normal, columns of codes or counts have the frequencies of the training
    rows (one added). Columns of sequences are those of a step. None for models that observe other
    values than their first argument.
    """
    x = view.batch[0]
    sites = [n for n, v in view.values.items() if v.numel() == x.numel() and len(v) == len(x)]
    if len(view.values) != 1 or not sites or not train.dim() or train.shape[1:] != x.shape[1:]:
        return None
    support = unwrap_support(view.trace.nodes[sites[0]]["fn"].support)
    width = x.shape[2] if x.dim() == 3 else x[0].numel()
    columns, new = (t.double().reshape(-1, width) for t in (train, x))
    total = 0.0
    for p in range(width):
        fitted, values = columns[:, p][~columns[:, p].isnan()], new[:, p][~new[:, p].isnan()]
        if len(fitted) < 2 or not len(values):
            continue
        if support.is_discrete:
            if (values != values.round()).any():
                return None
            span = int(max(fitted.max(), values.max())) + 1
            counts = torch.bincount(fitted.long(), minlength=span) + 1.0
            total += float((counts / counts.sum()).log()[values.long()].sum())
        else:
            sd = float(fitted.std().clamp(min=1e-6))
            z = (values - fitted.mean()) / sd
            total += float((-0.5 * z.square() - math.log(sd) - 0.5 * math.log(2 * math.pi)).sum())
    return total / len(x)


def names_by_settings(runs: Sequence[Run], fallback: Sequence[str]) -> list[str]:
    """Runs by what differs in their settings; by `fallback` where nothing does."""
    described = [_description(run) for run in runs]
    keys = dict.fromkeys(key for each in described for key in each)
    differing = [k for k in keys if len({each.get(k) for each in described}) > 1]
    names = []
    for each, name in zip(described, fallback, strict=True):
        parts = [each[k] if k in PLAIN else f"{k}={each[k]}" for k in differing if k in each]
        names.append(", ".join(parts) or name)
    if len(set(names)) < len(names):
        names = [f"{n} ({f})" if n != f else n for n, f in zip(names, fallback, strict=True)]
    return names


PLAIN = ("model", "guide", "objective")  # told apart by their value alone


def _description(run: Run) -> dict[str, str]:
    record = run.record
    texts = {"model": record["model"]["name"], "guide": (record["guide"] or {}).get("name", "")}
    objective = record.get("objective", "")
    K = getattr(run.pair.objective, "num_particles", 1)
    name = objective.partition("(")[0]
    texts["objective"] = f"{name}({K})" if K > 1 else name
    for place in (record["model"].get("settings"), record["options"]):
        texts |= {key: str(value) for key, value in (place or {}).items()}
    return texts
