"""Table and figure of diffusion.md: diffusion against a VAE.

    python docs/tools/diffusion_table.py          ten minutes on one core; writes diffusion.png
    python docs/tools/diffusion_table.py --smoke  seconds; the numbers mean nothing

1,350 training digits, 150 for early stopping, 297 held out. Both models give each pixel a
probability for each of its 17 levels.
"""

import math
import sys
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from ppl_lvm.data import load_data
from ppl_lvm.estimators import ELBO
from ppl_lvm.fitting.svi import fit
from ppl_lvm.models.diffusion import Diffusion
from ppl_lvm.models.vae import VAE
from ppl_lvm.runs.run import Run


def bound(run: Run, x: Tensor, particles: int) -> Tensor:
    """The evidence lower bound of each row: (N,), nats."""
    estimator = ELBO(particles)
    with torch.no_grad():
        return estimator.bound(estimator.draw(run.model, run.guide, (x,), {}))


def row(name: str, values: Tensor) -> None:
    """Print the mean of nats per digit (N,), with its standard error."""
    nats, error = float(values.mean()), float(values.std() / math.sqrt(len(values)))
    print(
        f"{name:34} {nats:8.2f} ± {error:.2f} nats   {-nats / (64 * math.log(2)):.3f} bits a pixel"
    )


def main(smoke: bool = False) -> None:
    """Fit both, print the table, draw the picture; `smoke` for a few steps on a few digits."""
    digits = load_data("digits")  # 8 x 8 pixels of ink 0 to 16
    rest, test = digits.split(15 if smoke else 297, 0)
    x = test.batch(torch.arange(len(test)))[0]
    options: Any = {
        "batch_size": 128,
        "validation": 3 if smoke else 150,
        "validate_every": 250,
        "patience": 8,
    }

    diffusion = fit(
        Diffusion(steps=32, hidden=(256, 256), likelihood="categorical", categories=17),
        None,
        rest,
        optimizer="Adam(lr=0.001)",
        num_steps=2 if smoke else 8000,
        **options,
    )
    vae = fit(
        VAE(latent=16, hidden=(256,), likelihood="categorical", categories=17),
        None,
        rest,
        optimizer="Adam(lr=0.001)",
        num_steps=2 if smoke else 4000,
        **options,
    )
    model: Any = diffusion.model
    row("VAE, bound", bound(vae, x, 16))
    row("VAE, log p(x), 1000 particles", vae.log_evidence(x, 10 if smoke else 1000).per_row)
    for steps in (8, 32, 128):
        model.steps = steps
        row(f"diffusion, bound of {steps} steps", bound(diffusion, x, 2))
    model.steps = 32
    row(
        "diffusion, log p(x), 200 particles",
        diffusion.log_evidence(x, 2 if smoke else 200).per_row,
    )
    torch.manual_seed(0)
    rows = {
        "data": x[:12],
        "32 steps": model.draw(12),
        "8 steps": model.draw(12, steps=8),
        "8 steps, η = 0": model.draw(12, steps=8, eta=0.0),
        "VAE": vae.sample(12)["x"],
    }
    figure, axes = plt.subplots(len(rows), 1, figsize=(8, 4.2), layout="constrained")
    for axis, (name, pictures) in zip(axes, rows.items(), strict=True):
        strip = torch.cat([p.reshape(8, 8).float() for p in pictures], 1)
        axis.imshow(strip.numpy(), cmap="gray_r", vmin=0, vmax=16)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig("diffusion.png", dpi=110)


if __name__ == "__main__":
    main(smoke="--smoke" in sys.argv)
