"""Which pictures suit a run, drawn into its directory.

What the pictures show is read from the programs' traces, so a user's model is drawn as ours are.
Every run has a training curve; `PICTURES` lists the others, of which each says by itself whether
it suits (None: it does not).
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.data import Data
from ppl_lvm.data.selection import first_rows
from ppl_lvm.report.figures import (
    classes,
    conditional,
    density,
    fit,
    latents,
    sequences,
    topics,
)
from ppl_lvm.report.run_view import RunView

if TYPE_CHECKING:
    from ppl_lvm.runs.run import Run

SHOWN_ROWS = 2000
PICTURES: dict[str, Callable[[RunView], Figure | None]] = {
    "density": density.picture,
    "mixture": classes.mixture,
    "classes": classes.of_each,
    "confusion": classes.against_labels,
    "filled_in": conditional.filled_in,
    "predictions": conditional.predictions,
    "posterior": conditional.posterior,
    "topics": topics.topics,
    "sequences": sequences.made_up,
    "states": sequences.states,
    "samples": latents.samples,
    "chain": latents.chain,
    "reconstructions": latents.reconstructions,
    "traversals": latents.traversals,
    "latent_plane": latents.latent_plane,
}
# Slug -> how to read the picture, and what it shows to those who cannot see it.
READINGS = {
    "training": (
        "It has arrived where the curve is flat; a gap to the validation curve is overfitting.",
        "The bound in nats per row against the step.",
    ),
    "density": (
        "Dark where the model expects data: blank data and dark emptiness are both faults.",
        "The model's density over the plane of its two columns, with the data.",
    ),
    "mixture": (
        "A component that hugs a few points, or that covers two clouds, is a reason to look.",
        "The data coloured by component, with each component's ellipses.",
    ),
    "classes": (
        "Each class should have a face of its own; two alike are one kind cut in two.",
        "What the model makes of each class.",
    ),
    "confusion": (
        "A label spread over classes, or a class of many labels, is where the model errs.",
        "How many rows of each label were put into each class.",
    ),
    "filled_in": (
        "Draws should differ where the given part leaves a choice, and agree where it does not.",
        "Given parts, the truth, ways to go on that the model draws, and their mean.",
    ),
    "predictions": (
        "On the line the model is right on average; too few or too many data inside the "
        "intervals mean noise that is judged too small or too large.",
        "Observed values against what the model predicts of them.",
    ),
    "posterior": (
        "An interval that holds 0 says that the data do not settle the sign.",
        "Means and intervals of latents that rows share.",
    ),
    "topics": (
        "The words of a topic should belong together; two alike are one topic cut in two.",
        "The words that each topic makes likely.",
    ),
    "sequences": (
        "They should look alike on both sides: level, speed, swings and jumps.",
        "Sequences of the data, and sequences the model makes up.",
    ),
    "states": (
        "States should change where the sequence changes its manner, and be sure in between.",
        "The probability of each hidden state along the first sequences.",
    ),
    "samples": (
        "They should look like data, and differ from one another.",
        "Draws from the model.",
    ),
    "chain": (
        "Shapes should appear step by step; all of it in the last steps asks for more of them.",
        "Draws of the model's chain, from pure noise to data.",
    ),
    "reconstructions": (
        "What is lost from above to below is what the latents do not carry.",
        "Data above, the mean of the model at their codes below.",
    ),
    "traversals": (
        "What each latent stands for; one that changes nothing is not used.",
        "The mean of the model as one latent moves by two standard deviations of the codes to "
        "either side (bits and proportions from 0 to 1), the others at their mean.",
    ),
    "latent_plane": (
        "Groups that the model found by itself; a round cloud about 0 is what the prior expects.",
        "Posterior means of the data in the plane of the two latents that vary most.",
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
        fit.save(figure, path)
        files.append(path)
    return files


def figures(run: "Run", data: Data) -> dict[str, Figure]:
    """Slug -> figure: what suits a run, on at most 2,000 rows of `data`.

    A picture that cannot be drawn is left out with a warning: it never costs a fit.
    """
    batch = first_rows(data, SHOWN_ROWS)
    subject = RunView(run, data, batch)
    found = {"training": fit.training_curve(run.history)}
    for slug, make in PICTURES.items():
        try:
            with preserve_rng():  # the same pictures each time, and nobody else's numbers
                torch.manual_seed(0)
                figure = make(subject)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            said = str(error).partition("\n")[0]
            warnings.warn(f"The picture {slug!r} could not be drawn: {said}", stacklevel=2)
            continue
        if figure is not None:
            found[slug] = figure
    return found


def worst_rows(run: "Run", data: Data, batch: tuple[Tensor, ...], log_p: Tensor) -> Figure | None:
    """The rows of `batch` that have the lowest `log_p` (N,); None where there are no codes."""
    return latents.worst(RunView(run, data, batch), log_p)
