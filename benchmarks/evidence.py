"""Spread of evidence estimates, and the maximum of the ELBO.

How much do two unbiased estimates of p(x) vary, and where does the ELBO equal log p(x)?

A mixture of two normals, z ∈ {0, 1} and x in the plane:

    z ~ Bernoulli(π₁)                  π₁ = 0.33
    x | z ~ Normal(μ_z, Σ_z)           μ₁ = (4.04, 3.83), Σ₁ = [[1.79, -.10], [-.10, 2.00]]
                                       μ₀ = (1.10, 0.86), Σ₀ = [[1.20, -.97], [-.97, 1.15]]

Importance sampling from a proposal r estimates p(x) by the mean of p(x, z) / r(z). From the prior
it varies; from the posterior every term equals p(x). Along q = Bernoulli(λ)

    ELBO(λ) + KL(q ‖ p(z|x)) = log p(x),

so the ELBO has its maximum, log p(x), at λ* = p(z=1|x). The query point is the x on the line from
μ₀ to μ₁ where λ* = 0.76.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.special import xlog1py, xlogy

from ppl_lvm.benchmarks import harness
from ppl_lvm.benchmarks.harness import Row
from ppl_lvm.core.validate import Seed

LOG_PRIOR = torch.tensor([0.67, 0.33], dtype=torch.float64).log()
MEANS = torch.tensor([[1.10, 0.86], [4.04, 3.83]], dtype=torch.float64)
COVARIANCES = torch.tensor(
    [[[1.20, -0.97], [-0.97, 1.15]], [[1.79, -0.10], [-0.10, 2.00]]], dtype=torch.float64
)
QUERY = 0.76


def log_joint(x: Tensor) -> Tensor:
    """log p(x, z) for z = 0, 1: (..., 2), for x (..., 2)."""
    return LOG_PRIOR + MultivariateNormal(MEANS, COVARIANCES).log_prob(x.unsqueeze(-2))


def posterior(x: Tensor) -> Tensor:
    """λ* = p(z = 1 | x), (...)."""
    return log_joint(x).softmax(-1)[..., 1]


def query_point(probability: float = QUERY) -> Tensor:
    """The x between μ₀ and μ₁ where p(z = 1 | x) is `probability`, by bisection, (2,)."""
    low, high = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        below = posterior(torch.lerp(MEANS[0], MEANS[1], middle)) < probability
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.lerp(MEANS[0], MEANS[1], low)


def elbo(x: Tensor, lam: Tensor) -> Tensor:
    """E_q log p(x, z) + H(q) for q = Bernoulli(λ), in the shape of `lam`."""
    log_p = log_joint(x)
    entropy = -xlogy(lam, lam) - xlog1py(1 - lam, -lam)
    return lam * log_p[..., 1] + (1 - lam) * log_p[..., 0] + entropy


def divergence(x: Tensor, lam: Tensor) -> Tensor:
    """KL(Bernoulli(λ) ‖ p(z | x)), in the shape of `lam`."""
    star = posterior(x)
    one = xlogy(lam, lam) - xlogy(lam, star)
    return one + xlog1py(1 - lam, -lam) - xlog1py(1 - lam, -star)


def importance(x: Tensor, proposal: Tensor, num_particles: int, repeats: int) -> Tensor:
    """Estimates of log p(x), (repeats,), from z ~ Bernoulli(proposal)."""
    z = torch.bernoulli(proposal.expand(repeats, num_particles)).long()
    log_r = torch.stack([(-proposal).log1p(), proposal.log()])
    log_w = (log_joint(x) - log_r)[z]
    return log_w.logsumexp(-1) - torch.tensor(num_particles).log()


def run(
    *, smoke: bool = False, directory: str | Path | None = None, seed: Seed = 0
) -> harness.Result:
    """Spread of both estimates against K, and the three curves."""
    torch.manual_seed(seed)
    x = query_point()
    star, exact = posterior(x), log_joint(x).logsumexp(-1)
    repeats = 200 if smoke else 20_000
    proposals = {"prior": LOG_PRIOR[1].exp(), "posterior": star}
    rows = []
    for num_particles in (1, 10, 100) if smoke else (1, 2, 5, 10, 20, 50, 100, 200, 500):
        for name, proposal in proposals.items():
            values = importance(x, proposal, num_particles, repeats)
            rows.append(
                {
                    "proposal": name,
                    "particles": num_particles,
                    "mean of log p̂(x), nats": values.mean().item(),
                    "sd, nats": values.std().item(),
                    "sd of p̂(x) / p(x)": (values - exact).exp().std().item(),
                    "exact log p(x), nats": exact.item(),
                }
            )
    lam = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    curves = {"λ": lam, "ELBO(λ)": elbo(x, lam), "KL(λ)": divergence(x, lam)}
    gap = (curves["ELBO(λ)"] + curves["KL(λ)"] - exact).abs().max().item()
    return harness.publish(
        "evidence",
        __doc__ or "",
        rows,
        draw(rows, curves, exact.item(), star.item()),
        seed=seed,
        directory=directory,
        smoke=smoke,
        query_point=x.tolist(),
        optimum=star.item(),
        log_evidence=exact.item(),
        largest_gap=gap,
        best_lambda=lam[curves["ELBO(λ)"].argmax()].item(),
    )


def draw(rows: Sequence[Row], curves: dict[str, Tensor], exact: float, star: float) -> Figure:
    """The three curves over λ, and both spreads over K."""
    figure, (left, right) = harness.new_figure(10, 4, columns=2)
    lam = curves["λ"].numpy()
    left.plot(lam, curves["ELBO(λ)"].numpy(), label="ELBO(λ)")
    left.plot(lam, curves["KL(λ)"].numpy(), label="KL(q ‖ posterior)")
    left.axhline(exact, color="black", label="log p(x), their sum")
    left.axvline(star, color="gray", linestyle=":", label=f"λ* = {star:.2f}")
    left.set(xlabel="λ = q(z = 1)", ylabel="nats")
    left.legend()
    for name in ("prior", "posterior"):
        mine = [row for row in rows if row["proposal"] == name]
        K = [row["particles"] for row in mine]
        mean = torch.tensor([row["mean of log p̂(x), nats"] for row in mine]).numpy()
        sd = torch.tensor([row["sd, nats"] for row in mine]).numpy()
        right.plot(K, mean, marker="o", label=f"from the {name}")
        right.fill_between(K, mean - sd, mean + sd, alpha=0.2)
    right.axhline(exact, color="black", label="log p(x)")
    right.set(xscale="log", xlabel="particles", ylabel="estimate of log p(x) ± sd, nats")
    right.legend()
    return figure


if __name__ == "__main__":
    harness.command(run)
