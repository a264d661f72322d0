"""Signal-to-noise ratio of gradients against K and M.

How does a gradient's signal-to-noise ratio depend on the particles K and the number M of averaged
draws?

On a linear-Gaussian model, for the guide's gradient: |E g| / sd(g) per component, averaged over
components and rows. The mean of M independent gradients has 1/M of the variance. In theory

    IWAE   SNR ~ sqrt(M / K)     more particles make the guide's gradient worse
    DReG   SNR ~ sqrt(M K)       more particles make it better

so on logarithmic axes the slopes against K are -1/2 and +1/2, and against M +1/2 for both.

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
from ppl_lvm.benchmarks import harness
from ppl_lvm.benchmarks.gradient_suite.programs import (
    LinearGaussian,
    LinearGaussianGuide,
    Parameters,
    handwritten_parameters,
)
from ppl_lvm.benchmarks.gradient_suite.samples import local_parameters
from ppl_lvm.benchmarks.handwritten import linear_gaussian, pathwise
from ppl_lvm.benchmarks.harness import Result, Row
from ppl_lvm.core.validate import Seed
from ppl_lvm.programs.pair import ModelGuidePair

THEORY = {"IWAE": (-0.5, 0.5), "DReG": (0.5, 0.5)}
# The guide differs from the posterior, as during training: mean by 0.1, log sd by 0.2.
X = [[0.8, -0.3]]


def parameters() -> Parameters:
    """One latent, two observed columns; the guide is near the posterior."""
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


def our_gradients(objective: str) -> Callable[[int, int], Tensor]:
    """Gradients (R, 2) of mean and log sd, from R replicates in one plate."""

    def draw(num_particles: int, repeats: int) -> Tensor:
        params = replicated(parameters(), repeats)
        pair = ModelGuidePair(LinearGaussian(params), LinearGaussianGuide(params), Trace_ELBO())
        x = torch.tensor(X).expand(repeats, -1)
        pair.materialize_parameters(x)
        with pair.scope():
            loss = getattr(estimators, objective)(num_particles=num_particles)
            loss.loss_and_grads(pair.model, pair.guide, x)
        leaves = handwritten_parameters(pair.unconstrained_parameters)
        grads = [leaves[name].grad for name in ("guide.bias", "guide.log_scale")]
        return -torch.cat([grad for grad in grads if grad is not None], -1)

    return draw


def handwritten_gradients(objective: str) -> Callable[[int, int], Tensor]:
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
            fixed = {k: v.detach() for k, v in params.items()}
            surrogate = pathwise.dreg(z, log_p, linear_gaussian.log_q(fixed, x, z))
        mean, scale = params["guide.bias"], params["guide.log_scale"]
        return torch.cat(torch.autograd.grad(surrogate.sum(), [mean, scale]), -1)

    return draw


def _place(params: Parameters, x: Tensor, num_particles: int) -> Tensor:
    return linear_gaussian.place(params, x, torch.randn(num_particles, len(x), 1))


def replicated(params: Parameters, repeats: int) -> Parameters:
    """Copy the guide's mean and log sd for every replicate, for separate gradients."""
    copied = ("guide.bias", "guide.log_scale")
    return {k: v.expand(repeats, 1).clone() if k in copied else v for k, v in params.items()}


def signal_to_noise(gradients: Tensor, averaged: int) -> float:
    """Mean over components of |E g| / sd, for draws (R, G) averaged in blocks of `averaged`."""
    blocks = gradients[: len(gradients) // averaged * averaged]
    means = blocks.view(-1, averaged, gradients.shape[1]).mean(1)
    return (means.mean(0).abs() / means.std(0)).mean().item()


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of log y against log x."""
    log_x, log_y = torch.tensor(x).double().log(), torch.tensor(y).double().log()
    log_x = log_x - log_x.mean()
    return ((log_x * log_y).sum() / log_x.square().sum()).item()


def run(*, smoke: bool = False, directory: str | Path | None = None, seed: Seed = 0) -> Result:
    """Signal-to-noise ratios over K and over M, with fitted slopes."""
    torch.manual_seed(seed)
    particles = (4, 16, 64) if smoke else (4, 8, 16, 32, 64, 128, 256)
    draws = (1, 4, 16)
    repeats = 2_000 if smoke else 200_000
    implementations = {"ppl_lvm": our_gradients, "hand": handwritten_gradients}
    rows: list[Row] = []
    with local_parameters():
        for objective in THEORY:
            for by, make in implementations.items():
                for K in particles:
                    # Chunks limit the memory at large K.
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
    for fit in slopes:
        print(
            f"{fit['estimator']} ({fit['by']}): SNR ~ K^{fit['against K']:.2f} "
            f"M^{fit['against M']:.2f}; theory K^{fit['theory K']} M^{fit['theory M']}"
        )
    return harness.publish(
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
    slopes: list[Row] = []
    for objective, (of_k, of_m) in THEORY.items():
        for by in dict.fromkeys(row["by"] for row in rows):
            selected = [r for r in rows if r["estimator"] == objective and r["by"] == by]
            first = min(r["K"] for r in selected)
            against_k = [(r["K"], r["SNR"]) for r in selected if r["M"] == 1]
            against_m = [(r["M"], r["SNR"]) for r in selected if r["K"] == first]
            slopes.append(
                {
                    "estimator": objective,
                    "by": by,
                    "against K": slope(*zip(*against_k, strict=True)),
                    "theory K": of_k,
                    "against M": slope(*zip(*against_m, strict=True)),
                    "theory M": of_m,
                }
            )
    return slopes


def draw(rows: Sequence[Row]) -> Figure:
    """SNR against K, one line per estimator and M."""
    figure, (axes,) = harness.new_figure(6, 4.5)
    for objective, color in zip(THEORY, ("tab:orange", "tab:blue"), strict=True):
        for M in sorted({row["M"] for row in rows}):
            selected = [
                r for r in rows if (r["estimator"], r["by"], r["M"]) == (objective, "ppl_lvm", M)
            ]
            label = f"{objective}, M = {M}"
            axes.plot(
                [r["K"] for r in selected],
                [r["SNR"] for r in selected],
                marker="o",
                color=color,
                alpha=0.4 + 0.2 * (M > 1) + 0.4 * (M > 4),
                label=label,
            )
    axes.set(xscale="log", yscale="log", xlabel="particles K", ylabel="signal-to-noise ratio")
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    harness.command(run)
