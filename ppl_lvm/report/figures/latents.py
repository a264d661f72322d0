"""Pictures of what continuous codes carry: samples, reconstructions, walks, the plane, the chain.

Each takes a `Subject` and gives None where it does not suit the model.
"""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import constraints

from ppl_lvm.core.distributions import unwrap_support
from ppl_lvm.core.types import Array
from ppl_lvm.posterior import predict
from ppl_lvm.posterior.latent_arithmetic import traverse
from ppl_lvm.report.figures import fit as pictures
from ppl_lvm.report.figures import traversals as codes
from ppl_lvm.report.figures.style import TEXT, WIDTH, picture_grid, thin, title_above, view
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
def samples(subject: RunView) -> Figure | None:
    """New rows: of pictures their means at new codes, of columns draws beside the data."""
    name, shape = subject.rows, subject.image_shape
    if name is None:
        return None
    draws = subject.run.sample(
        SHOWN_PICTURES if shape is not None else min(SHOWN_POINTS, len(subject.x)), seed=0
    )
    if shape is None:
        whole = subject.x[np.isfinite(subject.x).all(1)]
        return pictures.samples(draws[name].cpu().numpy(), data=whole) if len(whole) else None
    if not subject.continuous:
        return pictures.samples(draws[name].cpu().numpy(), image_shape=shape)
    new = {n: draws[n] for n in subject.codes if n in draws}
    rows = subject.run.example_batch(SHOWN_PICTURES)
    means = subject.numbers(predict.decode(subject.pair, new, *rows)[name])
    return pictures.samples(means, image_shape=shape)


@run_figure(
    "chain",
    caption="Shapes should appear gradually; if all appear in the last steps, use more steps.",
    alt_text="Samples of the model's chain, from pure noise to data.",
)
def chain(subject: RunView) -> Figure | None:
    """The way from noise to data, of a model whose latents are a chain of rows."""
    if not subject.chain:
        return None
    shape = subject.image_shape
    draws = subject.run.sample(CHAINS if shape is not None else SHOWN_POINTS, seed=0)
    assert subject.rows is not None
    way = [*subject.chain, subject.rows]
    chosen = [way[i] for i in np.unique(np.linspace(0, len(way) - 1, STAGES).astype(int))]
    stages = [draws[name].cpu().numpy() for name in chosen]
    if shape is not None:
        return _developing(stages, chosen, shape)
    return _gathering(stages, chosen, subject.x)


@run_figure(
    "reconstructions",
    caption="Details lost in the reconstruction are not encoded by the latents.",
    alt_text="Data above, the mean of the model at their codes below.",
)
def reconstructions(subject: RunView) -> Figure | None:
    """Rows, and what the model makes of their codes."""
    back = reconstruct(subject)
    if back is None or subject.chain:
        return None
    n = SHOWN_RECONSTRUCTIONS
    return pictures.reconstructions(subject.x[:n], back[:n], image_shape=subject.image_shape)


@run_figure(
    "traversals",
    caption="The meaning of each latent; one that changes nothing is unused.",
    alt_text="The mean of the model as one latent moves by two standard deviations of the codes "
    "to either side (bits and proportions from 0 to 1), the others at their mean.",
)
def traversals(subject: RunView) -> Figure | None:
    """The numbers of the first code that vary most move one at a time, all others at their mean."""
    name = subject.rows
    if reconstruct(subject) is None or subject.chain:
        return None
    site, z = next(iter(subject.continuous.items()))
    shape = subject.image_shape
    most = TRAVERSED if shape is not None else TRAVERSED_TABLE
    order = z.std(0).argsort(descending=True)[:most].sort().values
    D, T = len(order), TRAVERSAL_STEPS
    at, moved = _walks(subject, site, z, order)
    rows = subject.repeated(D * T)
    fixed = {**subject.still(D * T), site: moved.reshape(D * T, -1)}
    decoded = subject.numbers(predict.decode(subject.pair, fixed, *rows)[name or ""])
    return codes.traversals(
        decoded.reshape(D, T, -1),
        at.cpu().numpy(),
        [f"{site}[{d}]" for d in order.tolist()],
        image_shape=shape,
        names=subject.data.columns,
    )


@run_figure(
    "latent_plane",
    caption="Groups are structure that the model inferred without labels; the prior expects a "
    "round cloud around 0.",
    alt_text="Posterior means of the data in the plane of the two latents that vary most.",
)
def latent_plane(subject: RunView) -> Figure | None:
    """Codes by the two numbers that vary most, coloured by label."""
    if reconstruct(subject) is None or subject.chain:
        return None
    z = next(iter(subject.continuous.values()))
    return pictures.latent_plane(z.cpu().numpy(), subject.labels, subject.data.label_names)


@run_figure(
    "worst_explained",
    caption="Wrong labels, rare classes and outliers are common here; so are features that the "
    "model lacks.",
    alt_text="The observations of lowest log p(x), and the mean of the model at their codes.",
    needs_log_p=True,
)
def worst(subject: RunView, log_p: Tensor) -> Figure | None:
    """The rows of the lowest `log_p` (N,), with what the model gives back for them."""
    back = reconstruct(subject)
    if back is None or len(log_p) != len(back):
        return None
    shape, names = subject.image_shape, subject.data.columns
    return codes.worst_explained(
        subject.x, back, log_p.cpu().numpy(), image_shape=shape, names=names
    )


def reconstruct(subject: RunView) -> Array | None:
    """The model's means of the rows at their codes (N, P); None where there are no codes."""
    if subject.rows is None or not subject.continuous:
        return None
    back = subject.numbers(subject.decoded[subject.rows])
    return back if back.shape == subject.x.shape else None


def _walks(subject: RunView, site: str, z: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Values (D, T) that numbers `order` of a code take, and the whole codes (D, T, …) then.

    Two standard deviations to either side; bits go from 0 to 1, and of proportions one grows from
    nothing to the whole at the others' expense.
    """
    support = subject.trace.nodes[site]["fn"].support if site in subject.trace.nodes else None
    support = unwrap_support(support)
    middle, spread = z.mean(0), z.std(0)[order, None]
    if support is constraints.simplex or support is constraints.boolean:
        at = torch.linspace(0, 1, TRAVERSAL_STEPS).to(z).expand(len(order), -1)
    else:
        at = torch.linspace(-2, 2, TRAVERSAL_STEPS).to(z) * spread + middle[order, None]
    moved = torch.stack([traverse(middle, d, v) for d, v in zip(order.tolist(), at, strict=True)])
    if support is constraints.simplex:
        own = torch.zeros_like(moved).scatter_(
            -1, order[:, None, None].expand(-1, TRAVERSAL_STEPS, 1), 1.0
        )
        rest = moved * (1 - own)
        moved = own * moved + (1 - own) * rest / rest.sum(-1, keepdim=True) * (1 - at[..., None])
    return at, moved


def _developing(stages: list[Array], names: list[str], shape: tuple[int, int]) -> Figure:
    """Pictures, a row a draw, a column a stage, each stage on a scale of its own."""
    scaled = []
    for stage in stages:
        low, high = np.quantile(stage, [0.02, 0.98])
        scaled.append(np.clip((stage - low) / max(high - low, 1e-12), 0, 1))
    shown = np.stack(scaled, 1).reshape(-1, *shape)  # (n · stages, H, W)
    title = f"From noise to data: {', '.join(names)} from left to right"
    return picture_grid(title, shown, len(stages[0]), len(stages), [""] * len(stages[0]))


def _gathering(stages: list[Array], names: list[str], x: Array) -> Figure:
    """Clouds of points, along the axes that the data are seen along."""
    _, W, _ = view(x, None, None)
    across = -(-len(stages) // 2)
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    title_above(figure, "From noise to data: a cloud of draws at stages of the chain")
    for axes, stage, name in zip(figure.subplots(2, across).ravel(), stages, names, strict=False):
        points = (stage @ W)[thin(len(stage))]
        axes.scatter(points[:, 0], points[:, 1], s=2, linewidths=0)
        axes.set_title(name, fontsize=TEXT - 1)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure
