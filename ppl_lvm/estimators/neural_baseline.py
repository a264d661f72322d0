"""Neural variational inference and learning (NVIL): a network of the data as the baseline.

With log-weights w_k = log p(x, z_k) - log q(z_k | x) of K particles z_k ~ q(z | x),

    ∇ELBO ≈ 1/K Σ_k (w_k - c - C_ψ(x)) ∇log q(z_k | x) + ∇log p(x, z_k),

where C_ψ learns by least squares, min_ψ Σ_k (w_k - c - C_ψ(x))², and c is a decaying average of
past weights (updated after use). Neither sees this step's draws, so the gradient is unbiased. The
paper's division by a running standard deviation only rescales the step; Adam does that already,
and it is left out.

The network's parameters reach the optimiser as the model's own do; its least squares are part of
the surrogate, with a gradient for ψ alone.

Reference:
    Mnih, Gregor (2014). Neural variational inference and learning in belief networks, sections
    2.3 and 2.4. https://arxiv.org/abs/1402.0030
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ppl_lvm.estimators.base import Estimator
from ppl_lvm.estimators.parts.decaying_average import DecayingAverage
from ppl_lvm.particles import PairStructure, Particles
from ppl_lvm.particles.structure import Program


class NeuralBaseline(Estimator):
    """The evidence lower bound with score function gradients, a network of x as baseline.

    Args:
        num_particles: K.
        hidden: width of the network's one hidden layer.
        beta: what the average keeps of itself at each step, in [0, 1).
        network: another network, (B, P) -> (B, 1) or (B,); P is the number of entries in a row of
            all tensors that the model is called with.
        vectorize_particles: run particles in one pass; by default where the program allows it.
    """

    target = "ELBO"
    unbiased = True
    is_linear = True
    requires_batch_rows = True
    paper = "Mnih, Gregor (2014). https://arxiv.org/abs/1402.0030"

    def __init__(
        self,
        num_particles: int = 1,
        hidden: int = 64,
        beta: float = 0.9,
        network: nn.Module | None = None,
        vectorize_particles: bool | None = None,
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        self.average = DecayingAverage(beta)
        if network is None:
            with warnings.catch_warnings():  # LazyLinear announces that it is new
                warnings.simplefilter("ignore", UserWarning)
                network = nn.Sequential(nn.LazyLinear(hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.network = network

    def validate(self, plan: PairStructure) -> None:
        """Also refuse a guide without a site for the baseline to serve."""
        super().validate(plan)
        if not plan.score_sites:
            sites = ", ".join(f"{name!r} ({kind})" for name, kind in plan.latents.items())
            raise ValueError(
                "NeuralBaseline lowers the variance of draws that are not reparameterised, and "
                f"the guide has none: it draws {sites or 'nothing'}. Use ELBO."
            )

    def draw(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Particles:
        particles = super().draw(model, guide, args, kwargs)
        size = particles.log_w.shape[1]
        tensors = [a for a in args if isinstance(a, Tensor)]
        if not tensors or any(len(a) != size for a in tensors):
            raise ValueError(
                f"NeuralBaseline needs the rows of the batch as the model's arguments: {size} rows "
                f"are in the data plate, the arguments have {[tuple(a.shape) for a in tensors]}. "
                "Pass the rows of the mini-batch (not subsample_size), or use LeaveOneOut."
            )
        dtype = torch.get_default_dtype()
        rows = torch.cat([a.reshape(size, -1).to(dtype) for a in tensors], -1)  # (B, P)
        particles.extras = {"rows": rows}
        return particles

    def bound(self, particles: Particles) -> Tensor:
        return particles.log_w.mean(0)  # (B,)

    def surrogate(self, particles: Particles) -> Tensor:
        pathwise = particles.log_p - particles.log_q_path  # (K, B)
        if particles.score is None:
            return pathwise.mean(0)
        C = self.network(particles.extras["rows"]).reshape(-1)  # (B,)
        error = particles.log_w.detach() - self.average().to(C) - C  # (K, B)
        fit = -0.5 * error**2  # its gradient is ψ's alone
        return (pathwise + error.detach() * particles.score + fit).mean(0)  # (B,)

    def update_state(self, particles: Particles) -> None:
        self.average.add(particles.log_w)
