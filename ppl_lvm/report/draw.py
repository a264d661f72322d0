"""Which pictures suit a run, drawn into its directory.

Every run has a training curve. A discrete site summed out of a model of continuous data gives
the mixture picture; a continuous local latent gives samples, reconstructions and the latent
plane. What the pictures show is read from the programs' traces, so a user's model is drawn as
ours are.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from pyro import poutine
from torch import Tensor

from ppl_lvm import predict
from ppl_lvm.codes import traverse
from ppl_lvm.data import Data
from ppl_lvm.pair import Pair
from ppl_lvm.report import density, pictures
from ppl_lvm.report.codes import traversals, worst_explained

if TYPE_CHECKING:
    from ppl_lvm.run import Run

SHOWN_ROWS = 2000
SHOWN_SAMPLES = 40
SHOWN_RECONSTRUCTIONS = 10
TRAVERSED, TRAVERSED_TABLE, TRAVERSAL_STEPS = 8, 3, 9


# Slug -> how to read the picture, and what it shows to those who cannot see it.
READINGS = {
    "training": (
        "It has arrived where the curve is flat; a gap to the validation curve is overfitting.",
        "The bound in nats per datum against the step.",
    ),
    "mixture": (
        "A component that hugs a few points, or that covers two clouds, is a reason to look.",
        "The data coloured by component, with each component's ellipses.",
    ),
    "density": (
        "Dark where the model expects data: blank data and dark emptiness are both faults.",
        "The model's density over the plane of its two columns, with the data.",
    ),
    "samples": (
        "They should look like data, and differ from one another.",
        "Draws from the model.",
    ),
    "reconstructions": (
        "What is lost from above to below is what the latents do not carry.",
        "Data above, the mean of the model at their codes below.",
    ),
    "latent_plane": (
        "Groups that the model found by itself; a round cloud about 0 is what the prior expects.",
        "Posterior means of the data in the plane of the two latents that vary most.",
    ),
    "traversals": (
        "What each latent stands for; one that changes nothing is not used.",
        "The mean of the model as one latent moves by two standard deviations of the codes to "
        "either side, the others at their mean.",
    ),
    "worst_explained": (
        "Faults of labelling, rare kinds and outliers gather here; so does what the model lacks.",
        "The data of lowest log p(x), and the mean of the model at their codes.",
    ),
}


def draw(run: "Run", data: Data, directory: Path) -> list[Path]:
    """Draw a run into `directory`; returns the files written."""
    files = []
    for slug, figure in figures(run, data).items():
        path = directory / f"{slug}.png"
        pictures.save(figure, path)
        files.append(path)
    return files


def figures(run: "Run", data: Data) -> dict[str, Figure]:
    """Slug -> figure: what suits a run, on at most 2,000 rows of `data`."""
    batch = data.batch(torch.arange(min(len(data), SHOWN_ROWS)))
    labels = None if data.labels is None else data.labels[: len(batch[0])].numpy()
    found = {"training": pictures.training_curve(run.history)}
    pair = run._pair
    summed = predict.summed_sites(pair, *batch)
    codes = predict.encode(pair, *batch)
    observed = predict.decode(pair, _states(codes, summed), *batch) if codes else {}
    if (
        len(batch) == 1
        and codes.keys() == summed
        and _is_plane(batch[0])
        and not _has_globals(pair, batch)
    ):
        found["density"] = density.picture(pair, batch[0].numpy(), data.columns)
    if len(batch) == 1 and len(observed) == 1 and batch[0].dim() == 2:
        x, (name, mean) = batch[0], next(iter(observed.items()))
        continuous = {
            n: c for n, c in codes.items() if n not in summed and c.dim() == 2 and c.shape[1] > 1
        }
        if len(summed) == 1 and not continuous:
            components = _mixture(run, next(iter(summed)), name, codes, x[:1])
            if components is not None and x.shape[1] > 1:
                found["mixture"] = pictures.mixture(x.numpy(), names=data.columns, **components)
        if continuous and mean.shape == x.shape:
            shape = data.image_shape
            n = SHOWN_RECONSTRUCTIONS
            draws = run.sample(SHOWN_SAMPLES, seed=0)
            shown = predict.decode(
                pair,
                {k: draws[k] for k in codes},
                *(t[:SHOWN_SAMPLES] for t in run._rows(SHOWN_SAMPLES)),
            )
            found["samples"] = pictures.samples(
                shown[name].numpy(),
                image_shape=shape,
                data=None if shape is not None else x.numpy(),
            )
            found["reconstructions"] = pictures.reconstructions(
                x[:n].numpy(), mean[:n].numpy(), image_shape=shape
            )
            found["traversals"] = _traversals(
                run, next(iter(continuous)), codes, summed, batch, data
            )
            found["latent_plane"] = pictures.latent_plane(
                next(iter(continuous.values())).numpy(),
                labels=labels,
                label_names=data.label_names,
            )
    return found


def _has_globals(pair: Pair, batch: tuple[Tensor, ...]) -> bool:
    """Whether the guide draws latents that all rows share: rows then have no density apart."""
    with torch.no_grad(), torch.random.fork_rng(), pair.scope(), poutine.block():
        return bool(predict.draw_guide(pair, batch)[1])


def _is_plane(x: Any) -> bool:
    """Rows of two numbers, all known."""
    plane = isinstance(x, Tensor) and x.dim() == 2 and x.shape[1] == 2 and x.is_floating_point()
    return plane and not bool(x.isnan().any())


def _traversals(
    run: "Run",
    name: str,
    codes: dict[str, Tensor],
    summed: frozenset[str],
    batch: tuple[Tensor, ...],
    data: Data,
) -> Figure:
    """Move the numbers of site `name` that vary most, one at a time, all others at their mean."""
    z = codes[name]  # (N, D)
    spread = z.std(0)
    most = TRAVERSED if data.image_shape is not None else TRAVERSED_TABLE
    order = spread.argsort(descending=True)[:most].sort().values
    D, T = len(order), TRAVERSAL_STEPS
    at = torch.linspace(-2, 2, T) * spread[order, None] + z.mean(0)[order, None]  # (D, T)
    walks = [traverse(z.mean(0), d, values) for d, values in zip(order.tolist(), at, strict=True)]
    moved = torch.stack(walks)
    still = {n: c.mean(0).expand(D * T, *c.shape[1:]) for n, c in codes.items()}
    still |= {n: codes[n].mean(0).argmax(-1).expand(D * T) for n in summed & codes.keys()}
    index = torch.arange(D * T) % len(batch[0])
    rows = tuple(t[index] for t in batch)
    decoded = predict.decode(run._pair, {**still, name: moved.reshape(D * T, -1)}, *rows)
    return traversals(
        next(iter(decoded.values())).reshape(D, T, -1).numpy(),
        at.numpy(),
        [f"{name}[{d}]" for d in order.tolist()],
        image_shape=data.image_shape,
        names=data.columns,
    )


def worst(run: "Run", data: Data, batch: tuple[Tensor, ...], log_p: Tensor) -> Figure | None:
    """The rows of `batch` that have the lowest `log_p` (N,); None where there are no codes."""
    pair = run._pair
    summed = predict.summed_sites(pair, *batch)
    codes = predict.encode(pair, *batch)
    if codes.keys() <= summed or len(batch) > 1 or len(log_p) != len(batch[0]):
        return None
    (back,) = list(predict.decode(pair, _states(codes, summed), *batch).values())[:1]
    if back.shape != batch[0].shape or back.dim() != 2:
        return None
    return worst_explained(
        batch[0].numpy(),
        back.numpy(),
        log_p.numpy(),
        image_shape=data.image_shape,
        names=data.columns,
    )


def _states(codes: dict[str, Tensor], summed: frozenset[str]) -> dict[str, Tensor]:
    """Codes to decode at: means of continuous sites, the likeliest state of summed-out ones."""
    return {n: c.argmax(-1) if n in summed else c for n, c in codes.items()}


def _mixture(
    run: "Run", site: str, observed: str, codes: dict[str, Tensor], row: Tensor
) -> dict[str, Any] | None:
    """Means, covariances and weights of a mixture's components; None where it is none."""
    responsibilities = codes[site]
    found = predict.components(run._pair, site, responsibilities.shape[-1], row)
    means, covariances = [], []
    for component in found:
        fn = component[observed]
        if fn.event_shape != row.shape[1:] or not torch.is_floating_point(fn.mean):
            return None
        means.append(fn.mean[0])
        covariances.append(
            fn.covariance_matrix[0]
            if hasattr(fn, "covariance_matrix")
            else torch.diag(fn.variance[0])
        )
    return {
        "responsibilities": responsibilities.numpy(),
        "means": torch.stack(means).numpy(),
        "covariances": torch.stack(covariances).numpy(),
        "weights": responsibilities.mean(0).numpy(),
    }
