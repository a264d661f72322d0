"""Latent arithmetic: attribute vectors, interpolation paths, traversals.

    a = mean of E[z | x_n] over rows with the attribute - mean over rows without it
    edited x = E[x | z + strength · a],   z = E[z | x]

Functions of codes take and return tensors (N, D); functions of a run take data as the model does.
Codes are the means of q(z | x), and decoded rows the means of p(x | z). `evaluate_edit` measures
how often an edit changes its attribute and nothing else.

References:
    Larsen, Sønderby, Larochelle, Winther (2016). Autoencoding beyond pixels using a learned
    similarity metric. https://arxiv.org/abs/1512.09300, section 4.2 (attribute vectors)
    White (2016). Sampling generative networks. https://arxiv.org/abs/1609.04468 (spherical paths)
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_lvm.posterior import predict

if TYPE_CHECKING:
    from ppl_lvm.runs.run import Run


def code_site(run: "Run", x: Any, site: str | None = None) -> str:
    """Name of the local continuous latent: `site`, or the only one.

    Raises:
        ValueError: there is no such latent, or several and no name.
    """
    batch = run.batch(x)
    summed = predict.summed_sites(run.pair, *batch)
    names = sorted(set(run.encode(x)) - summed)
    if site is None and len(names) == 1:
        return names[0]
    if site not in names:
        raise ValueError(
            f"The model's codes are {names}; got site={site!r}. "
            + (f"Name one of them: site={names[0]!r}." if names else "There is no code to edit.")
        )
    return site


def attribute_vector(run: "Run", x: Any, labels: Tensor, *, site: str | None = None) -> Tensor:
    """The direction (D,) from codes of rows without an attribute to codes of rows with it.

    Args:
        x: N rows, as the model takes them.
        labels: (N,) True or 1 for rows with the attribute, False or 0 for others.
        site: the code, where the model has several.

    Raises:
        ValueError: there is not one label per row, labels are not binary, or all are equal.
    """
    z = run.encode(x)[code_site(run, x, site)]
    has = _binary_labels(labels, len(z))
    return z[has].mean(0) - z[~has].mean(0)


def edit(
    run: "Run", x: Any, attribute: Tensor, strength: float = 1.0, *, site: str | None = None
) -> dict[str, Tensor]:
    """Observed site -> its mean at the codes of `x`, moved by `strength` · `attribute` (D,)."""
    name = code_site(run, x, site)
    z = run.encode(x)[name]
    if attribute.shape != z.shape[1:]:
        raise ValueError(
            f"An attribute of {name!r} has shape {tuple(z.shape[1:])}, got "
            f"{tuple(attribute.shape)}. Use attribute_vector(run, x, labels)."
        )
    return run.decode({name: z + strength * attribute.to(z)}, x)


def linear_path(start: Tensor, end: Tensor, steps: int = 8) -> Tensor:
    """Codes on the line from `start` to `end`, (..., D) each: (steps, ..., D), both ends included.

    Use it where codes fill a ball. In many dimensions the middle of a line is nearer to 0 than
    almost all codes from the prior: see `spherical_path`.
    """
    t = _interpolation_weights(steps, start, end)
    return start + t * (end - start)


def spherical_path(start: Tensor, end: Tensor, steps: int = 8) -> Tensor:
    """Codes on the arc from `start` to `end`, (..., D) each: (steps, ..., D), both ends included.

        sin((1 - t) ω) / sin ω · start + sin(t ω) / sin ω · end,   ω the angle between them

    The arc turns at a constant rate and keeps the length of codes of equal length. Codes in equal
    or opposite directions, which determine no arc, are joined by the line.
    """
    t = _interpolation_weights(steps, start, end)
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=-1).unsqueeze(-1)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    straight = sine < 1e-4  # there the arc is the line to rounding
    safe = sine.where(~straight, torch.ones_like(sine))
    arc = ((1 - t) * angle).sin() / safe * start + (t * angle).sin() / safe * end
    return arc.where(~straight, linear_path(start, end, steps))


def traverse(z: Tensor, dimension: int, values: Tensor) -> Tensor:
    """Codes `z` (..., D) with one coordinate set to each of `values` (V,): (V, ..., D).

    Raises:
        ValueError: there is no such dimension.
    """
    if not -z.shape[-1] <= dimension < z.shape[-1]:
        raise ValueError(
            f"Codes of size {z.shape[-1]} have dimensions 0 to {z.shape[-1] - 1}; got "
            f"dimension={dimension}."
        )
    moved = z.expand(len(values), *z.shape).clone()
    moved[..., dimension] = values.to(z).reshape(-1, *[1] * (z.dim() - 1))
    return moved


@dataclass(frozen=True)
class EditEvaluation:
    """Classification of edited rows by classifiers trained on real rows, as shares of rows.

    Attributes:
        changed: the row gained the attribute by the edit.
        preserved: the class of the row is the same as before.
        success: changed and preserved.
        control: `success` for a random direction of the same length.
        standard_error: standard error of `success`.
        rows: evaluated rows: without the attribute, and not used for training.
    """

    changed: float
    preserved: float
    success: float
    control: float
    standard_error: float
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.success:.3f} ± {self.standard_error:.3f} of {self.rows} rows gain the "
            f"attribute and are otherwise preserved (attribute changed: {self.changed:.3f}, class "
            f"preserved: {self.preserved:.3f}; a random direction: {self.control:.3f})"
        )


def evaluate_edit(
    run: "Run",
    x: Tensor,
    labels: Tensor,
    rest: Tensor,
    *,
    strength: float = 1.0,
    site: str | None = None,
    seed: int = 0,
) -> EditEvaluation:
    """Measure how often an edit changes the attribute and preserves the class.

    One half of the rows gives the attribute vector and trains two classifiers (logistic
    regression), of the attribute and of the class. Rows of the other half without the attribute
    are edited, and classified before and after.

    Args:
        run: a run of a model of one tensor.
        x: rows (N, P).
        labels: (N,) True or 1 for rows with the attribute, False or 0 for others.
        rest: (N,) the class that should stay.
        strength: distance along the attribute vector.
        seed: seed of the halves, and of the random direction.

    Raises:
        ValueError: labels that are not binary, or equal in one of the halves; a `rest` of one
            class.
    """
    has = _binary_labels(labels, len(x))
    rest = torch.as_tensor(rest)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    train, test = order[: len(x) // 2], order[len(x) // 2 :]
    if len(rest[train].unique()) < 2:
        raise ValueError(
            "`rest` is one class in the training rows: an edit cannot change it. Pass a class with "
            "two or more values."
        )
    attribute = attribute_vector(run, x[train], has[train], site=site)
    attribute_classifier = _classifier(x[train], has[train])
    rest_classifier = _classifier(x[train], rest[train])
    test = test[~has[test]]
    if len(test) == 0:
        raise ValueError("No row of the second half is without the attribute. Pass more rows.")
    before = _single_site(edit(run, x[test], torch.zeros_like(attribute), site=site))
    has_before = torch.as_tensor(attribute_classifier.predict(before)).bool()
    rest_before = torch.as_tensor(rest_classifier.predict(before))

    def classify_edit(direction: Tensor) -> tuple[Tensor, Tensor]:
        after = _single_site(edit(run, x[test], direction, strength, site=site))
        has_after = torch.as_tensor(attribute_classifier.predict(after)).bool()
        rest_after = torch.as_tensor(rest_classifier.predict(after))
        return has_after & ~has_before, rest_after == rest_before

    changed, preserved = classify_edit(attribute)
    random = torch.randn(attribute.shape, generator=generator).to(attribute)
    control = classify_edit(random / random.norm() * attribute.norm())
    success = (changed & preserved).float().mean().item()
    return EditEvaluation(
        changed=changed.float().mean().item(),
        preserved=preserved.float().mean().item(),
        success=success,
        control=(control[0] & control[1]).float().mean().item(),
        standard_error=math.sqrt(success * (1 - success) / len(test)),
        rows=len(test),
    )


def _single_site(means: dict[str, Tensor]) -> Tensor:
    """The means (N, P) of the only observed site."""
    if len(means) != 1:
        raise ValueError(f"An edit needs a single observed site; the model has {sorted(means)}.")
    return next(iter(means.values()))


def _classifier(x: Tensor, y: Tensor) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x, y)


def _binary_labels(labels: Tensor, rows: int) -> Tensor:
    """Labels as bools (N,).

    Raises:
        ValueError: there is not one label per row, labels are not binary, or all are equal.
    """
    labels = torch.as_tensor(labels)
    if labels.shape != (rows,):
        raise ValueError(f"{rows} rows need labels of shape ({rows},), got {tuple(labels.shape)}.")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError(
            "Labels must be 0 or 1, for rows without and with the attribute. For one of several "
            "classes use labels == k."
        )
    has = labels.bool()
    if has.all() or not has.any():
        raise ValueError(
            "All labels are equal: an attribute is the difference of two groups. Pass rows with "
            "and without it."
        )
    return has


def _interpolation_weights(steps: int, start: Tensor, end: Tensor) -> Tensor:
    """t from 0 to 1, (steps, 1, …), for a path between codes of one shape."""
    if start.shape != end.shape:
        raise ValueError(
            f"A path joins codes of one shape; got {tuple(start.shape)} and {tuple(end.shape)}."
        )
    if steps < 2:
        raise ValueError(f"A path has two ends: steps must be at least 2, got {steps}.")
    return torch.linspace(0, 1, steps).to(start).reshape(-1, *[1] * start.dim())
