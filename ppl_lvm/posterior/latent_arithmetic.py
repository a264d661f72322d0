"""Walks in code space: attributes as directions, paths between two data, one code at a time.

    a = mean of E[z | x_n] over rows that have the attribute - mean over those that have it not
    edited x = E[x | z + strength · a],   z = E[z | x]

Functions of codes take and give tensors (N, D); those of a run take data as the model does. The
codes are the means of q(z | x), and what comes back is the mean of p(x | z). How far an edit does
what its name says, and nothing else, is a figure too: `evaluate_edit`.

References:
    Larsen, Sønderby, Larochelle, Winther (2016). Autoencoding beyond pixels using a learned
    similarity metric. https://arxiv.org/abs/1512.09300, section 4.2 (attribute vectors)
    White (2016). Sampling generative networks. https://arxiv.org/abs/1609.04468 (spherical paths)
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ppl_lvm.posterior import predict

if TYPE_CHECKING:
    from ppl_lvm.runs.run import Run


def code_site(run: "Run", x: Any, site: str | None = None) -> str:
    """The local continuous latent that walks go through: `site`, or the only one there is.

    Raises:
        ValueError: there is none, or several and none was named.
    """
    batch = run.batch(x)
    summed = predict.summed_sites(run.pair, *batch)
    names = sorted(set(run.encode(x)) - summed)
    if site is None and len(names) == 1:
        return names[0]
    if site not in names:
        raise ValueError(
            f"The model's codes are {names}; got site={site!r}. "
            + (f"Name one of them: site={names[0]!r}." if names else "There is none to walk in.")
        )
    return site


def attribute_vector(run: "Run", x: Any, labels: Tensor, *, site: str | None = None) -> Tensor:
    """The direction (D,) from codes of rows without an attribute to codes of rows with it.

    Args:
        run: a fitted run.
        x: N rows, as the model takes them.
        labels: (N,) whether a row has the attribute: bools, or 0 and 1.
        site: the code, where the model has several.

    Raises:
        ValueError: labels that are not two-valued, of another length, or all alike.
    """
    z = run.encode(x)[code_site(run, x, site)]
    has = _two_valued(labels, len(z))
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
            f"{tuple(attribute.shape)}. Make it with attribute_vector(run, x, labels)."
        )
    return run.decode({name: z + strength * attribute.to(z)}, x)


def linear_path(start: Tensor, end: Tensor, steps: int = 8) -> Tensor:
    """Codes on the line from `start` to `end`, (..., D) each: (steps, ..., D), both ends included.

    The way of data whose codes fill a ball. In many dimensions the middle of a line lies nearer
    to 0 than almost any code that the prior draws: see `spherical_path`.
    """
    t = _shares(steps, start, end)
    return start + t * (end - start)


def spherical_path(start: Tensor, end: Tensor, steps: int = 8) -> Tensor:
    """Codes on the arc from `start` to `end`, (..., D) each: (steps, ..., D), both ends included.

        sin((1 - t) ω) / sin ω · start + sin(t ω) / sin ω · end,   ω the angle between them

    which turns at a constant rate; codes of one length keep it on the way. Where the two point
    the same way (or exactly opposite ways, which no arc prefers) it is the line.
    """
    t = _shares(steps, start, end)
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=-1).unsqueeze(-1)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    straight = sine < 1e-4  # there the arc is the line to rounding
    safe = sine.where(~straight, torch.ones_like(sine))
    arc = ((1 - t) * angle).sin() / safe * start + (t * angle).sin() / safe * end
    return arc.where(~straight, linear_path(start, end, steps))


def traverse(z: Tensor, dimension: int, values: Tensor) -> Tensor:
    """Codes `z` (..., D) with one number put to each of `values` (V,): (V, ..., D).

    Raises:
        ValueError: there is no such number.
    """
    if not -z.shape[-1] <= dimension < z.shape[-1]:
        raise ValueError(
            f"Codes of {z.shape[-1]} numbers have dimensions 0 to {z.shape[-1] - 1}; got "
            f"dimension={dimension}."
        )
    moved = z.expand(len(values), *z.shape).clone()
    moved[..., dimension] = values.to(z).reshape(-1, *[1] * (z.dim() - 1))
    return moved


@dataclass(frozen=True)
class EditEvaluation:
    """What classifiers trained on real rows say of edited ones; shares of `rows` rows.

    Attributes:
        changed: has the attribute after the edit and had it not before.
        kept: the rest is what it was before the edit.
        both: changed and kept at once: what the edit is for.
        control: `both` for a random direction of the same length.
        standard_error: of `both`.
        rows: of data without the attribute, that nothing was learned from.
    """

    changed: float
    preserved: float
    success: float
    control: float
    standard_error: float
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.success:.3f} ± {self.standard_error:.3f} of {self.rows} rows have the "
            f"attribute after the edit and are otherwise what they were (attribute changed: "
            f"{self.changed:.3f}, rest kept: {self.preserved:.3f}; a random direction: "
            f"{self.control:.3f})"
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
    """Does moving along an attribute change it, and nothing else?

    One half of the rows gives the attribute vector and trains two classifiers (logistic regression
    on real rows): does it have the attribute, and which class is it? The rows of the other half
    that have it not are edited, and the classifiers asked before and after.

    Args:
        run: a run of a model of one tensor.
        x: rows (N, P).
        labels: (N,) whether a row has the attribute. rest: (N,) the class that should stay.
        strength: how far along the attribute vector.
        seed: of the halves, and of the random direction.

    Raises:
        ValueError: labels that are none, or alike in one of the halves; a `rest` of one class.
    """
    has = _two_valued(labels, len(x))
    rest = torch.as_tensor(rest)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    learn, ask = order[: len(x) // 2], order[len(x) // 2 :]
    if len(rest[learn].unique()) < 2:
        raise ValueError(
            "`rest` is one class in the rows that teach it: an edit cannot change it. Give the "
            "class that should stay, of two or more."
        )
    attribute = attribute_vector(run, x[learn], has[learn], site=site)
    is_it, which = _classifier(x[learn], has[learn]), _classifier(x[learn], rest[learn])
    ask = ask[~has[ask]]
    if len(ask) == 0:
        raise ValueError("No row of the second half is without the attribute. Give more rows.")
    before = _only(edit(run, x[ask], torch.zeros_like(attribute), site=site))
    had = torch.as_tensor(is_it.predict(before)).bool()
    stays = torch.as_tensor(which.predict(before))

    def ask_about(direction: Tensor) -> tuple[Tensor, Tensor]:
        after = _only(edit(run, x[ask], direction, strength, site=site))
        changed = torch.as_tensor(is_it.predict(after)).bool()
        return changed & ~had, torch.as_tensor(which.predict(after)) == stays

    changed, kept = ask_about(attribute)
    random = torch.randn(attribute.shape, generator=generator).to(attribute)
    control = ask_about(random / random.norm() * attribute.norm())
    both = (changed & kept).float().mean().item()
    return EditEvaluation(
        changed=changed.float().mean().item(),
        preserved=kept.float().mean().item(),
        success=both,
        control=(control[0] & control[1]).float().mean().item(),
        standard_error=math.sqrt(both * (1 - both) / len(ask)),
        rows=len(ask),
    )


def _only(found: dict[str, Tensor]) -> Tensor:
    """The means (N, P) of the only observed site."""
    if len(found) != 1:
        raise ValueError(f"An edit is judged on one observed site; the model has {sorted(found)}.")
    return next(iter(found.values()))


def _classifier(x: Tensor, y: Tensor) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x, y)


def _two_valued(labels: Tensor, rows: int) -> Tensor:
    """Labels as bools (N,).

    Raises:
        ValueError: they are not one a row, not two-valued, or all alike.
    """
    labels = torch.as_tensor(labels)
    if labels.shape != (rows,):
        raise ValueError(f"{rows} rows need labels of shape ({rows},), got {tuple(labels.shape)}.")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError(
            "Labels say whether a row has the attribute, 0 or 1. For a class among several, "
            "compare first: labels == k."
        )
    has = labels.bool()
    if has.all() or not has.any():
        raise ValueError("All rows are labelled alike: an attribute is a difference of two groups.")
    return has


def _shares(steps: int, start: Tensor, end: Tensor) -> Tensor:
    """t from 0 to 1, (steps, 1, …), for a path between codes of one shape."""
    if start.shape != end.shape:
        raise ValueError(
            f"A path leads between codes of one shape; got {tuple(start.shape)} and "
            f"{tuple(end.shape)}."
        )
    if steps < 2:
        raise ValueError(f"A path has two ends: steps must be at least 2, got {steps}.")
    return torch.linspace(0, 1, steps).to(start).reshape(-1, *[1] * start.dim())
