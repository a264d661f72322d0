"""The VAE against a hand-written one on the digits.

Does the toolkit's VAE reach the held-out log p(x) of a hand-written VAE on the digits?

Handwritten digits of 8 × 8 pixels, binarized at >= 8, 1,500 for training and 297 held out; 8
latents, one hidden layer of 128 in decoder and encoder, 150 epochs of batch 128 with Adam 1e-3.
Trained by the ELBO, IWAE-5 and IWAE-50, with `fit` and with the plain torch of
`handwritten/vae.py`, on the same rows; then held-out log p(x) by importance sampling with 5,000
particles, nats per digit. An earlier hand-written program reached -18.0, -17.7 and -17.4; the
toolkit must be within 0.15 of the hand-written program of the same run.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppl_lvm.benchmarks import harness
from ppl_lvm.benchmarks.handwritten import vae
from ppl_lvm.benchmarks.harness import Result, Row
from ppl_lvm.core.validate import Count, Seed
from ppl_lvm.data import Data, load_data
from ppl_lvm.fitting.svi import fit
from ppl_lvm.guides import AmortizedNormal
from ppl_lvm.models.vae import VAE

OBJECTIVES = {"ELBO": 1, "IWAE-5": 5, "IWAE-50": 50}
MAX_DIFFERENCE = 0.15


def train_ours(train: Data, held_out: Data, K: int, epochs: int, particles: int, seed: int) -> Row:
    """Train and score with `fit`."""
    run = fit(
        VAE,
        AmortizedNormal,
        train,
        objective="ELBO()" if K == 1 else f"IWAE(num_particles={K})",
        optimizer="Adam(lr=0.001)",
        num_epochs=epochs,
        accuracy=0,
        batch_size=128,
        seed=seed,
        settings={"latent": 8, "hidden": (128,)},
        guide_settings={"hidden": (128,)},
        progress=False,
    )
    evidence = run.log_evidence(held_out, num_particles=particles, seed=seed)
    return {"value": evidence.value, "seconds": float(run.restarts[0]["seconds"])}


def train_handwritten(
    train: Tensor, held_out: Tensor, K: int, epochs: int, particles: int, seed: int
) -> Row:
    """Train and score in plain torch."""
    start = time.perf_counter()
    params = vae.train(train, num_particles=K, num_epochs=epochs, seed=seed)
    seconds = time.perf_counter() - start
    torch.manual_seed(seed)
    value = vae.log_evidence(params, held_out, particles).mean().item()
    return {"value": value, "seconds": seconds}


def run(
    *, smoke: bool = False, directory: str | Path | None = None, seed: Seed = 0, seeds: Count = 1
) -> Result:
    """Both programs on the same rows with `seeds` seeds; `seed` determines the split."""
    data = load_data("digits(binarize=8)")
    train, held_out = data.split(297, seed)
    epochs, particles = (2, 50) if smoke else (150, 5000)
    columns = [part.batch(torch.arange(len(part)))[0].float() for part in (train, held_out)]
    rows: list[Row] = []
    for objective, K in OBJECTIVES.items():
        if smoke and K > 5:
            continue
        for run_seed in range(seed, seed + seeds):
            our = train_ours(train, held_out, K, epochs, particles, run_seed)
            hand = train_handwritten(columns[0], columns[1], K, epochs, particles, run_seed)
            rows.append(
                {
                    "objective": objective,
                    "seed": run_seed,
                    "ppl_lvm, nats": our["value"],
                    "hand, nats": hand["value"],
                    "difference": our["value"] - hand["value"],
                    "ppl_lvm, s": our["seconds"],
                    "hand, s": hand["seconds"],
                    "ratio": our["seconds"] / hand["seconds"],
                }
            )
    return harness.publish(
        "digits",
        __doc__ or "",
        rows,
        draw(rows),
        seed=seed,
        directory=directory,
        smoke=smoke,
        reached={name: mean_difference(rows, name) for name in {r["objective"]: 0 for r in rows}},
    )


def mean_difference(rows: Sequence[Row], objective: str) -> dict[str, float | bool]:
    """Mean over seeds, compared with the limit."""
    differences = [row["difference"] for row in rows if row["objective"] == objective]
    mean = sum(differences) / len(differences)
    return {"difference": mean, "within": MAX_DIFFERENCE, "met": abs(mean) <= MAX_DIFFERENCE}


def draw(rows: Sequence[Row]) -> Figure:
    """Held-out log p(x) of both programs."""
    figure, (axes,) = harness.new_figure(6, 4)
    names = list(dict.fromkeys(row["objective"] for row in rows))
    for offset, hand, color in ((-0.08, "ppl_lvm", "tab:blue"), (0.08, "hand", "tab:gray")):
        x = [names.index(row["objective"]) + offset for row in rows]
        axes.plot(x, [row[f"{hand}, nats"] for row in rows], "o", color=color, label=hand)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="held-out log p(x), nats per digit")
    axes.legend()
    return figure


if __name__ == "__main__":
    harness.command(run)
