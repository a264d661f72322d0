"""Neural variational inference and learning (NVIL): a neural baseline.

With log-weights w_k = log p(x, z_k) - log q(z_k | x) of K particles z_k ~ q(z | x),

    ∇ELBO ≈ 1/K Σ_k Σ_i (c_ki - a_i - C_ψ(x)) ∇log q(z_ki) + ∇log p(x, z_k),

where c_ki has the terms of w_k that draw i can change (`ppl_lvm.particles.score_terms`); with one
site per row c_k = w_k. C_ψ is fitted by least squares, min_ψ Σ_k Σ_i (c_ki - a_i - C_ψ(x))², with
the mean over the members of inner plates, and a_i is a decaying average of a site's past costs
(updated after use). Neither depends on the current draws, so the gradient is unbiased.
The paper's division by a running standard deviation is omitted: it only rescales the step, as Adam
does.

The optimizer receives the network's parameters together with the model's. The least-squares loss is
part of the surrogate, with a gradient for ψ only.

Reference:
    Mnih, Gregor (2014). Neural variational inference and learning in belief networks, sections
    2.3 and 2.4. https://arxiv.org/abs/1402.0030
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ppl_lvm.core.validate import Count, Share
from ppl_lvm.estimators.base import Estimator, describe_sites
from ppl_lvm.estimators.parts.decaying_average import DecayingAverage
from ppl_lvm.particles import PairStructure, Particles
from ppl_lvm.particles.structure import Program


class NeuralBaseline(Estimator):
    """The ELBO with score-function gradients and a network of x as baseline.

    Args:
        num_particles: K.
        hidden: width of the hidden layer.
        beta: decay rate of the average, in [0, 1).
        network: replaces the default network, (B, P) -> (B, 1) or (B,); P is the number of
            entries per row in all tensor arguments of the model.
        vectorize_particles: run particles in one pass; default: if the programs allow it.
    """

    target = "ELBO"
    unbiased = True
    is_linear = True
    requires_batch_rows = True
    paper = "Mnih, Gregor (2014). https://arxiv.org/abs/1402.0030"

    def __init__(
        self,
        num_particles: Count = 1,
        hidden: Count = 64,
        beta: Share = 0.9,
        network: nn.Module | None = None,
        vectorize_particles: bool | None = None,
    ) -> None:
        super().__init__(num_particles, vectorize_particles)
        self.hidden, self.beta = hidden, beta
        self.average = DecayingAverage(beta)
        if network is None:
            with warnings.catch_warnings():  # LazyLinear warns that it is a new feature
                warnings.simplefilter("ignore", UserWarning)
                network = nn.Sequential(nn.LazyLinear(hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.network = network

    def validate(self, structure: PairStructure) -> None:
        """Also reject a guide whose sites are all reparameterized."""
        super().validate(structure)
        if not structure.score_sites:
            raise ValueError(
                "NeuralBaseline lowers the variance of draws that are not reparameterized, but the "
                f"guide has none: it draws {describe_sites(structure)}. Use ELBO."
            )
        self.average.resize(len(structure.score_sites))

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
        C = self.network(particles.extras["rows"]).reshape(-1)  # (B,)
        for a, term in zip(self.average().reshape(-1), particles.score_terms, strict=True):
            error = term.cost - a.to(C) - term.expand(C)  # (K, plates)
            fit = -0.5 * error**2  # gradient for ψ only
            pathwise = pathwise + term.per_row(error.detach()) + term.mean_per_row(fit)
        return pathwise.mean(0)  # (B,)

    def update_state(self, particles: Particles) -> None:
        self.average.add(*(term.cost for term in particles.score_terms))
