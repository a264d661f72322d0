"""M-step of Monte Carlo EM: maximize the expected complete-data likelihood.

    Q(θ) = 1/S Σ_s log p(x, z_s | θ),    by L-BFGS from the present θ.

The S draws are a leading dimension of the model if it broadcasts, otherwise they are a loop.
"""

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_lvm.particles.dependence import SEVERAL, FollowDependence, row_labels
from ppl_lvm.programs.traces import latent_sites, plate_nesting
from ppl_lvm.training.em.nuts_sampler import Draws


class CompleteLikelihood:
    """Q of a model on a batch, and its maximum.

    Attributes:
        broadcasts: True if the model takes a leading dimension of draws; None before the first.

    Raises:
        ValueError: the model has no parameters, no latents, or discrete ones.
    """

    def __init__(self, model: Any, batch: tuple[Tensor, ...]) -> None:
        self.model, self.batch = model, batch
        self.leaves = (
            [p for p in model.parameters() if p.requires_grad]
            if isinstance(model, nn.Module)
            else []
        )
        if not self.leaves:
            raise ValueError(
                f"{type(model).__name__} has no parameters to fit. Declare them as nn.Parameter or "
                "PyroParam; for a posterior alone use pyro.infer.MCMC."
            )
        with poutine.block(), torch.no_grad():
            trace = poutine.trace(model).get_trace(*batch)
        latents = latent_sites(trace)
        if not latents:
            raise ValueError("The model has no latents. Maximize its likelihood directly.")
        for name, site in latents.items():
            if site["fn"].support.is_discrete:
                raise ValueError(
                    f"{name!r} is discrete, which NUTS does not draw. Marginalize it in the "
                    "model, or use fit_em or fit, which do."
                )
        self._dim = -1 - plate_nesting(trace)
        self.broadcasts: bool | None = None

    def theta(self) -> Tensor:
        """θ, unconstrained, in one vector."""
        return torch.cat([leaf.detach().flatten() for leaf in self.leaves])

    def set(self, theta: Tensor) -> None:
        """Set the parameters to θ."""
        with torch.no_grad():
            for leaf, value in zip(
                self.leaves, theta.split([p.numel() for p in self.leaves]), strict=True
            ):
                leaf.copy_(value.reshape(leaf.shape))

    def maximize(self, draws: Draws) -> float:
        """Move θ to the maximum of Q, in nats over all rows; returns it."""
        optimizer = torch.optim.LBFGS(self.leaves, max_iter=20, line_search_fn="strong_wolfe")
        N = len(self.batch[0])

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = -self._q(draws) / N
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        with torch.no_grad():
            return float(self._q(draws))

    def _q(self, draws: Draws) -> Tensor:
        S = len(next(iter(draws.values())))
        if self.broadcasts is None and S > 1:
            self.broadcasts = self._can_broadcast(draws)
        if self.broadcasts:
            return self._broadcast_log_joint(draws) / S
        return self._looped_log_joint(draws) / S

    @torch.no_grad()
    def _can_broadcast(self, draws: Draws) -> bool:
        """True if each term of the broadcast model depends on one draw, and they give Q.

        The values are compared too, since a model may read the shape of its draws; a parameter that
        is zero, which hides a term, has another value then.
        """
        theta = self.theta()
        generator = torch.Generator().manual_seed(0)
        noise = 0.1 * torch.rand(theta.shape, generator=generator).to(theta)
        try:
            if not self._draws_stay_separate(draws):
                return False
            self.set(torch.where(theta == 0, noise, theta))
            total, broadcast = self._looped_log_joint(draws), self._broadcast_log_joint(draws)
            return bool(torch.allclose(broadcast, total, rtol=1e-4))
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError):
            return False
        finally:
            self.set(theta)

    def _draws_stay_separate(self, draws: Draws) -> bool:
        S = len(next(iter(draws.values())))
        aligned = {name: value.clone() for name, value in self._aligned(draws).items()}
        plate = pyro.plate("draws", S, dim=self._dim)
        with pyro.validation_enabled(False), FollowDependence() as dependence, plate:
            for value in aligned.values():
                dependence.label(value, row_labels(S, -value.dim()))
            for node in self._trace(aligned).nodes.values():
                labels = dependence.labels(node["log_prob"]) if "log_prob" in node else None
                if labels is not None and bool((labels == SEVERAL).any()):
                    return False
        return not dependence.is_unknown

    def _looped_log_joint(self, draws: Draws) -> Tensor:
        S = len(next(iter(draws.values())))
        total: Any = sum(self._log_joint({k: v[s] for k, v in draws.items()}) for s in range(S))
        summed: Tensor = total
        return summed

    def _broadcast_log_joint(self, draws: Draws) -> Tensor:
        S = len(next(iter(draws.values())))
        with pyro.plate("draws", S, dim=self._dim):
            return self._log_joint(self._aligned(draws))

    def _aligned(self, draws: Draws) -> Draws:
        """Draws (S, batch, event) with S at the dimension of the plate "draws"."""
        with poutine.block(), torch.no_grad():
            trace = poutine.trace(
                poutine.condition(self.model, {k: v[0] for k, v in draws.items()})
            )
            nodes = trace.get_trace(*self.batch).nodes
        aligned = {}
        for name, value in draws.items():
            event = nodes[name]["fn"].event_dim
            missing = -self._dim - (value.dim() - event)  # dimensions between S and the batch
            aligned[name] = value.reshape(len(value), *[1] * missing, *value.shape[1:])
        return aligned

    def _log_joint(self, values: Draws) -> Tensor:
        total: Tensor = self._trace(values).log_prob_sum()
        return total

    def _trace(self, values: Draws) -> poutine.Trace:
        """The trace of the model at these values, with its log-densities."""
        with poutine.block():
            trace = poutine.trace(poutine.condition(self.model, values)).get_trace(*self.batch)
            trace.compute_log_prob()
        return trace
