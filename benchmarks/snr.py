"""How does a gradient's signal-to-noise ratio move with the particles K and the draws M averaged?

On a linear-Gaussian model, for the guide's gradient: |E g| / sd(g), each component on its own,
averaged over components and rows. M independent gradients, averaged, divide the variance by M. In
theory

    IWAE   SNR ~ sqrt(M / K)     more particles make the guide's gradient worse
    DReG   SNR ~ sqrt(M K)       more particles make it better

so that on logarithmic axes the slopes against K are -1/2 and +1/2, and against M +1/2 for both.

References:
    Rainforth et al. (2018). Tighter variational bounds are not necessarily better.
    https://arxiv.org/abs/1802.04537
    Tucker, Lawson, Gu, Maddison (2019). Doubly reparameterized gradient estimators.
    https://arxiv.org/abs/1810.04152
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppl_lvm import estimators
from ppl_lvm.benchmarks import harness as record
from ppl_lvm.benchmarks.gradient_suite.programs import (
    LinearGaussian,
    LinearGaussianGuide,
    Parameters,
    handwritten_loss,
)
from ppl_lvm.benchmarks.gradient_suite.samples import local_parameters
from ppl_lvm.benchmarks.handwritten import linear_gaussian, pathwise
from ppl_lvm.benchmarks.harness import Result, Row
from ppl_lvm.programs.pair import ModelGuidePair

THEORY = {"IWAE": (-0.5, 0.5), "DReG": (0.5, 0.5)}
# A guide that is off by a little, as after some training: mean by 0.1, log sd by 0.2.
X = [[0.8, -0.3]]


def parameters() -> Parameters:
    """One latent, two observed; the guide near the posterior."""
    params: Parameters = {
        "model.weight": torch.tensor([[1.0], [0.5]]),
        "model.bias": torch.zeros(2),
        "model.log_scale": torch.tensor(-0.3),
        "guide.weight": torch.zeros(1, 2),
        "guide.bias": torch.zeros(1),
        "guide.log_scale": torch.zeros(1),
    }
    mean, covariance = linear_gaussian.posterior(params, torch.tensor(X))
    params["guide.bias"] = mean[0] + 0.1
    params["guide.log_scale"] = 0.5 * covariance.diagonal().log() + 0.2
    return {name: value.requires_grad_() for name, value in params.items()}


def by_us(objective: str) -> Callable[[int, int], Tensor]:
    """Gradients (R, 2) of mean and log sd, of R replicates in one plate with own parameters."""

    def draw(num_particles: int, repeats: int) -> Tensor:
        params = replicated(parameters(), repeats)
        pair = ModelGuidePair(LinearGaussian(params), LinearGaussianGuide(params), Trace_ELBO())
        x = torch.tensor(X).expand(repeats, -1)
        pair.materialize_parameters(x)
        with pair.scope():
            loss = getattr(estimators, objective)(num_particles=num_particles)
            loss.loss_and_grads(pair.model, pair.guide, x)
        leaves = handwritten_loss(pair.unconstrained_parameters)
        grads = [leaves[name].grad for name in ("guide.bias", "guide.log_scale")]
        return -torch.cat([grad for grad in grads if grad is not None], -1)

    return draw


def by_hand_written(objective: str) -> Callable[[int, int], Tensor]:
    """The same in plain torch."""

    def draw(num_particles: int, repeats: int) -> Tensor:
        params = {
            name: value.detach().requires_grad_()
            for name, value in replicated(parameters(), repeats).items()
        }
        x = torch.tensor(X).expand(repeats, -1)
        z = _place(params, x, num_particles)
        log_p = linear_gaussian.log_p(params, x, z)
        if objective == "IWAE":
            surrogate = pathwise.iwae(log_p, linear_gaussian.log_q(params, x, z))
        else:
            still = {k: v.detach() for k, v in params.items()}
            surrogate = pathwise.dreg(z, log_p, linear_gaussian.log_q(still, x, z))
        mean, scale = params["guide.bias"], params["guide.log_scale"]
        return torch.cat(torch.autograd.grad(surrogate.sum(), [mean, scale]), -1)

    return draw


def _place(params: Parameters, x: Tensor, num_particles: int) -> Tensor:
    return linear_gaussian.place(params, x, torch.randn(num_particles, len(x), 1))


def replicated(params: Parameters, repeats: int) -> Parameters:
    """Every replicate has its own copy of the guide's mean and log sd: its own gradient."""
    own = ("guide.bias", "guide.log_scale")
    return {k: v.expand(repeats, 1).clone() if k in own else v for k, v in params.items()}


def signal_to_noise(gradients: Tensor, averaged: int) -> float:
    """Mean over components of |E g| / sd, for draws (R, G) averaged in blocks of `averaged`."""
    blocks = gradients[: len(gradients) // averaged * averaged]
    means = blocks.view(-1, averaged, gradients.shape[1]).mean(1)
    return (means.mean(0).abs() / means.std(0)).mean().item()


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of log y against log x, by least squares."""
    log_x, log_y = torch.tensor(x).double().log(), torch.tensor(y).double().log()
    log_x = log_x - log_x.mean()
    return ((log_x * log_y).sum() / log_x.square().sum()).item()


def run(*, smoke: bool = False, directory: str | Path | None = None, seed: int = 0) -> Result:
    """Signal-to-noise ratios over K and over M, with fitted slopes."""
    torch.manual_seed(seed)
    particles = (4, 16, 64) if smoke else (4, 8, 16, 32, 64, 128, 256)
    draws = (1, 4, 16)
    repeats = 2_000 if smoke else 200_000
    hands = {"ppl_lvm": by_us, "hand": by_hand_written}
    rows: list[Row] = []
    with local_parameters():
        for objective in THEORY:
            for by, make in hands.items():
                for K in particles:
                    # Few numbers are kept at a time: 16 at K = 256 would not fit otherwise.
                    chunk = max(1, min(repeats, 4_000_000 // K))
                    chunks = [make(objective)(K, chunk) for _ in range(repeats // chunk)]
                    gradients = torch.cat(chunks)
                    for M in draws:
                        rows.append(
                            {
                                "estimator": objective,
                                "by": by,
                                "K": K,
                                "M": M,
                                "SNR": signal_to_noise(gradients, M),
                                "replicates": len(gradients) // M,
                            }
                        )
    slopes = fit_slopes(rows)
    for found in slopes:
        print(
            f"{found['estimator']} ({found['by']}): SNR ~ K^{found['against K']:.2f} "
            f"M^{found['against M']:.2f}; theory K^{found['theory K']} M^{found['theory M']}"
        )
    return record.publish(
        "snr",
        __doc__ or "",
        rows,
        draw(rows),
        seed=seed,
        directory=directory,
        smoke=smoke,
        slopes=slopes,
    )


def fit_slopes(rows: Sequence[Row]) -> list[Row]:
    """Slopes at M = 1 against K, and at the smallest K against M."""
    found: list[Row] = []
    for objective, (of_k, of_m) in THEORY.items():
        for by in dict.fromkeys(row["by"] for row in rows):
            mine = [r for r in rows if r["estimator"] == objective and r["by"] == by]
            first = min(r["K"] for r in mine)
            against_k = [(r["K"], r["SNR"]) for r in mine if r["M"] == 1]
            against_m = [(r["M"], r["SNR"]) for r in mine if r["K"] == first]
            found.append(
                {
                    "estimator": objective,
                    "by": by,
                    "against K": slope(*zip(*against_k, strict=True)),
                    "theory K": of_k,
                    "against M": slope(*zip(*against_m, strict=True)),
                    "theory M": of_m,
                }
            )
    return found


def draw(rows: Sequence[Row]) -> Figure:
    """SNR against K, a line for each estimator and M."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for objective, color in zip(THEORY, ("tab:orange", "tab:blue"), strict=True):
        for M in sorted({row["M"] for row in rows}):
            mine = [
                r for r in rows if (r["estimator"], r["by"], r["M"]) == (objective, "ppl_lvm", M)
            ]
            label = f"{objective}, M = {M}"
            axes.plot(
                [r["K"] for r in mine],
                [r["SNR"] for r in mine],
                marker="o",
                color=color,
                alpha=0.4 + 0.2 * (M > 1) + 0.4 * (M > 4),
                label=label,
            )
    axes.set(xscale="log", yscale="log", xlabel="particles K", ylabel="signal-to-noise ratio")
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    record.command(run)
