"""Guide of a diffusion: its forward process.

It has no parameters but the schedule that it shares with the model. In training mode it draws one
random step per row, both parts from fixed distributions,

    t_n ~ U(0, 1), stratified over the batch,    ε_n ~ N(0, I),

and in evaluation mode the complete chain, from noise to almost the row,

    z_nT ~ N(α_1 u_n, σ_1² I),    z_n,i-1 ~ q(z_i-1 | z_ni, x_n),  i = T, …, 1

(see `ppl_lvm.nn.noise_schedule`). Serves only `ppl_lvm.models.diffusion:Diffusion`.
"""

from typing import Any

import pyro
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor

from ppl_lvm.guides.parts.site_guide import Latents, serving
from ppl_lvm.nn.noise_schedule import StratifiedTimes, alpha_sigma, step_back


@serving(Latents.DIFFUSION, description="the forward process")
class ForwardProcess(PyroModule):
    """q(t, ε), or q(z_T, …, z_0 | x) in evaluation mode, of a diffusion.

    Args:
        model: a `Diffusion`.
        batch: rows of the data; unused.

    Raises:
        ValueError: for another model.
    """

    def __init__(self, model: Any, *batch: Tensor) -> None:
        super().__init__()
        process = getattr(model, "process", None)
        if process is None:
            raise ValueError(
                f"ForwardProcess: the model must be a Diffusion, but {type(model).__name__} has no "
                "forward process. Use AmortizedNormal, or ppl_lvm.guides:auto_guide."
            )
        self.process = process
        self.train(model.training)

    def forward(self, x: Tensor) -> None:
        """Rows `x` (N, P)."""
        with pyro.plate("data", len(x), dim=-1):
            if self.training:
                self.one_step(x)
            else:
                self.chain(x)

    def one_step(self, x: Tensor) -> None:
        """Draw t and ε."""
        like = self.process.means
        pyro.sample("t", StratifiedTimes(like))
        pyro.sample("noise", Normal(like.new_zeros(like.shape), 1.0).to_event(1))

    def chain(self, x: Tensor) -> None:
        """Draw z_T, …, z_0."""
        gamma, T = self.process.grid(), self.process.steps
        u = self.process.standard(x)
        alpha, sigma = alpha_sigma(gamma)
        z = pyro.sample(f"z_{T}", Normal(alpha[T] * u, sigma[T]).to_event(1))
        for i in range(T, 0, -1):
            noise = (z - alpha[i] * u) / sigma[i]
            mean, sd = step_back(u, noise, gamma[i - 1], gamma[i])
            z = pyro.sample(f"z_{i - 1}", Normal(mean, sd).to_event(1))
