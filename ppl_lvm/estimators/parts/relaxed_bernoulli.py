"""Bernoulli draws as signs of logistic variables.

With logits φ and uniform u, v,

    z = φ + logit u,     b = 1[z > 0] ~ Bernoulli(σ(φ)),
    z' = φ + logit u',   u' = b (v s + 1 - s) + (1 - b) v (1 - s),   s = σ(φ),

z' is a draw of z given b. It depends on φ through u' too: ∂z/∂φ = 1, and ∂z'/∂φ is stored.
"""

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_lvm.core.distributions import elementary
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import PARTICLE_PLATE, plate_dim


def uniforms(like: Tensor) -> tuple[Tensor, Tensor]:
    """Uniform noise u and v, one each per bit, shaped like `like`."""
    return torch.rand_like(like), torch.rand_like(like)


class RelaxedBernoulli(Messenger):
    """Draw the guide's Bernoulli site as a sign and record (φ, b, z, z', ∂z'/∂φ) of every run."""

    def __init__(self, structure: PairStructure) -> None:
        super().__init__()
        self.structure = structure
        self.runs: list[dict[str, Tensor]] = []
        self.name = ""
        self.event_dim = 0
        self.data_dim: int | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or msg["name"] not in self.structure.score_sites:
            return
        phi = elementary(msg["fn"]).logits
        draws = _draw(phi.detach())
        draws["phi"] = phi
        if not any(f.name == PARTICLE_PLATE for f in msg["cond_indep_stack"]):
            draws = {key: value.unsqueeze(0) for key, value in draws.items()}
            msg["value"] = draws["b"][0]
        else:
            msg["value"] = draws["b"]
        msg["done"] = True
        self.name, self.event_dim = msg["name"], msg["fn"].event_dim
        self.data_dim = plate_dim(msg, self.structure.data_plate)
        self.runs.append(draws)

    def draws(self) -> dict[str, Tensor]:
        """phi, b, z, z2, dz2 of all particles: (K, ...) each."""
        return {key: torch.cat([run[key] for run in self.runs]) for key in self.runs[0]}

    def per_bit(self, value: Tensor, bits: Tensor) -> Tensor:
        """(K, B), or (K, 1), in a shape that broadcasts over bits (K, ...)."""
        shape = [len(bits)] + [1] * (bits.dim() - 1)
        if self.data_dim is not None:
            shape[bits.dim() - self.event_dim + self.data_dim] = value.shape[1]
        return value.reshape(shape)

    def per_row(self, bits: Tensor) -> Tensor:
        """Flatten the bits of each row: (K, ...) -> (K, B, D)."""
        if self.data_dim is None:
            return bits.reshape(len(bits), 1, -1)
        axis = bits.dim() - self.event_dim + self.data_dim
        return bits.movedim(axis, 1).reshape(len(bits), bits.shape[axis], -1)


def _draw(phi: Tensor) -> dict[str, Tensor]:
    u, v = uniforms(phi)
    eps = torch.finfo(phi.dtype).eps
    u, v = u.clamp(eps, 1 - eps), v.clamp(eps, 1 - eps)
    z = phi + u.logit()
    b = (z > 0).to(phi)
    with torch.enable_grad():
        leaf = phi.clone().requires_grad_()
        s = leaf.sigmoid()
        u2 = b * (v * s + 1 - s) + (1 - b) * v * (1 - s)
        z2 = leaf + u2.clamp(eps, 1 - eps).logit()
        (dz2,) = torch.autograd.grad(z2.sum(), leaf)
    return {"b": b, "z": z, "z2": z2.detach(), "dz2": dz2}
