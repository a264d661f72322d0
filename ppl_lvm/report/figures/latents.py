"""Figures of continuous codes: samples, reconstructions, traversals, chains."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import constraints

from ppl_lvm.core.distributions import unwrap_support
from ppl_lvm.core.types import Array
from ppl_lvm.posterior import predict
from ppl_lvm.posterior.latent_arithmetic import traverse
from ppl_lvm.report.figures import arrays as pictures
from ppl_lvm.report.figures import traversals as codes
from ppl_lvm.report.figures.style import (
    TEXT,
    WIDTH,
    describe,
    description,
    picture_grid,
    some_of,
    thin,
    title_above,
    view,
)
from ppl_lvm.report.run_figure import run_figure
from ppl_lvm.report.run_view import RunView

SHOWN_PICTURES, SHOWN_POINTS = 40, 500
SHOWN_RECONSTRUCTIONS = 10
TRAVERSED, TRAVERSED_TABLE, TRAVERSAL_STEPS = 8, 3, 9
STAGES, CHAINS = 6, 6


@run_figure(
    "samples",
    caption="Samples should look like data and differ from one another.",
    alt_text="Samples from the model.",
)
def samples(view: RunView) -> Figure | None:
    """Samples: means of pictures at sampled codes, or sampled rows with the data."""
    name, shape = view.rows, view.image_shape
    if name is None:
        return None
    draws = view.run.sample(
        SHOWN_PICTURES if shape is not None else min(SHOWN_POINTS, len(view.x)), seed=0
    )
    if shape is None:
        complete = view.x[np.isfinite(view.x).all(1)]
        return pictures.samples(draws[name].cpu().numpy(), data=complete) if len(complete) else None
    if not view.continuous:
        return pictures.samples(draws[name].cpu().numpy(), image_shape=shape)
    new = {n: draws[n] for n in view.codes if n in draws}
    rows = view.run.example_batch(SHOWN_PICTURES)
    means = view.numbers(predict.decode(view.pair, new, *rows)[name])
    return pictures.samples(means, image_shape=shape)


@run_figure(
    "chain",
    caption="Shapes should appear gradually; if all appear in the last steps, use more steps.",
    alt_text="Samples of the model's chain, from pure noise to data.",
)
def chain(view: RunView) -> Figure | None:
    """Stages from noise to data, for a model whose latents are a chain of rows."""
    if not view.chain:
        return None
    shape = view.image_shape
    draws = view.run.sample(CHAINS if shape is not None else SHOWN_POINTS, seed=0)
    assert view.rows is not None
    names = [*view.chain, view.rows]
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, STAGES).astype(int))]
    stages = [draws[name].cpu().numpy() for name in chosen]
    if shape is not None:
        return _developing(stages, chosen, shape)
    return _gathering(stages, chosen, view.x)


@run_figure(
    "reconstructions",
    caption="Details lost in the reconstruction are not encoded by the latents.",
    alt_text="Data above, the mean of the model at their codes below.",
)
def reconstructions(view: RunView) -> Figure | None:
    """Rows, and the means of the model at their codes."""
    back = reconstruct(view)
    if back is None or view.chain:
        return None
    n = SHOWN_RECONSTRUCTIONS
    if view.image_shape is None:
        n = len(back)
    return pictures.reconstructions(
        view.x[:n], back[:n], image_shape=view.image_shape, names=view.data.columns
    )


@run_figure(
    "traversals",
    caption="The meaning of each latent; one that changes nothing is unused.",
    alt_text="The mean of the model as one latent moves by two standard deviations of the codes "
    "to either side (bits and proportions from 0 to 1), the others at their mean.",
)
def traversals(view: RunView) -> Figure | None:
    """Means as one component of the first code moves and the others stay at their mean."""
    name = view.rows
    if reconstruct(view) is None or view.chain:
        return None
    site, z = next(iter(view.continuous.items()))
    shape = view.image_shape
    most = TRAVERSED if shape is not None else TRAVERSED_TABLE
    order = z.std(0).argsort(descending=True)[:most].sort().values
    D, T = len(order), TRAVERSAL_STEPS
    values, moved = _traversal_codes(view, site, z, order)
    rows = view.repeated(D * T)
    fixed = {**view.still(D * T), site: moved.reshape(D * T, -1)}
    decoded = view.numbers(predict.decode(view.pair, fixed, *rows)[name or ""])
    return codes.traversals(
        decoded.reshape(D, T, -1),
        values.cpu().numpy(),
        [f"{site}[{d}]" for d in order.tolist()],
        image_shape=shape,
        names=view.data.columns,
        left_out=some_of(D, z.shape[1], "latents"),
    )


@run_figure(
    "latent_plane",
    caption="Groups are structure inferred without labels. Codes far from 0 are rare under a "
    "standard normal prior.",
    alt_text="Posterior means of the data in the plane of the two latents that vary most.",
)
def latent_plane(view: RunView) -> Figure | None:
    """Codes in the plane of largest variance, colored by label."""
    if reconstruct(view) is None or view.chain:
        return None
    site, z = next(iter(view.continuous.items()))
    figure = pictures.latent_plane(z.cpu().numpy(), view.labels, view.data.label_names, site)
    fn = view.trace.nodes[site]["fn"] if site in view.trace.nodes else None
    finding, _ = description(figure)
    if fn is not None and unwrap_support(fn.support) is constraints.simplex:
        return describe(figure, finding, "Proportions of two parts; the rest is in the others.")
    if fn is None or unwrap_support(fn.support) is not constraints.real:
        return describe(figure, finding, "Groups are structure inferred without labels.")
    return figure


@run_figure(
    "worst_explained",
    caption="Wrong labels, rare classes and outliers are common here; so are features that the "
    "model lacks.",
    alt_text="The observations of lowest log p(x), and the mean of the model at their codes.",
    needs_log_p=True,
)
def worst(view: RunView, log_p: Tensor) -> Figure | None:
    """Rows of the lowest `log_p` (N,), with the means of the model."""
    back = reconstruct(view)
    if back is None or len(log_p) != len(back):
        return None
    shape, names = view.image_shape, view.data.columns
    return codes.worst_explained(view.x, back, log_p.cpu().numpy(), image_shape=shape, names=names)


def reconstruct(view: RunView) -> Array | None:
    """Means of the model at the codes (N, P); None for models without codes."""
    if view.rows is None or not view.continuous:
        return None
    back = view.numbers(view.decoded[view.rows])
    return back if back.shape == view.x.shape else None


def _traversal_codes(view: RunView, site: str, z: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Values (D, T) of the components `order` of a code, and the full codes (D, T, …).

    The range is two standard deviations to either side. Bits go from 0 to 1. A proportion goes
    from 0 to 1 while the others are rescaled.
    """
    support = view.trace.nodes[site]["fn"].support if site in view.trace.nodes else None
    support = unwrap_support(support)
    middle, spread = z.mean(0), z.std(0)[order, None]
    if support is constraints.simplex or support is constraints.boolean:
        at = torch.linspace(0, 1, TRAVERSAL_STEPS).to(z).expand(len(order), -1)
    else:
        at = torch.linspace(-2, 2, TRAVERSAL_STEPS).to(z) * spread + middle[order, None]
    moved = torch.stack([traverse(middle, d, v) for d, v in zip(order.tolist(), at, strict=True)])
    if support is constraints.simplex:
        selected = torch.zeros_like(moved).scatter_(
            -1, order[:, None, None].expand(-1, TRAVERSAL_STEPS, 1), 1.0
        )
        rest = moved * (1 - selected)
        moved = selected * moved + (1 - selected) * rest / rest.sum(-1, keepdim=True) * (
            1 - at[..., None]
        )
    return at, moved


def _developing(stages: list[Array], names: list[str], shape: tuple[int, int]) -> Figure:
    """Pictures with one row per sample and one column per stage, scaled by stage."""
    scaled = []
    for stage in stages:
        low, high = np.quantile(stage, [0.02, 0.98])
        scaled.append(np.clip((stage - low) / max(high - low, 1e-12), 0, 1))
    shown = np.stack(scaled, 1).reshape(-1, *shape)  # (n · stages, H, W)
    title = f"From noise to data: {', '.join(names)} from left to right"
    grid = picture_grid(title, shown, len(stages[0]), len(stages), [""] * len(stages[0]))
    return describe(grid, f"{len(stages[0])} samples at {len(stages)} stages, scaled by stage.")


def _gathering(stages: list[Array], names: list[str], x: Array) -> Figure:
    """Point clouds in the plane of the data's first two axes."""
    _, W, _ = view(x, None, None)
    across = -(-len(stages) // 2)
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    title_above(figure, "From noise to data: samples at stages of the chain")
    for axes, stage, name in zip(figure.subplots(2, across).ravel(), stages, names, strict=False):
        points = (stage @ W)[thin(len(stage))]
        axes.scatter(points[:, 0], points[:, 1], s=2, linewidths=0)
        axes.set_title(name, fontsize=TEXT - 1)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure
