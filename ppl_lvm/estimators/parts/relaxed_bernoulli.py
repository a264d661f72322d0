"""Bernoulli draws with the continuous variable that they are the sign of.

With logits φ and uniform u, v,

    z = φ + logit u,     b = 1[z > 0] ~ Bernoulli(σ(φ)),
    z' = φ + logit u',   u' = b (v s + 1 - s) + (1 - b) v (1 - s),   s = σ(φ),

z' is a draw of z given b, and depends on φ through u' too: ∂z/∂φ = 1 and ∂z'/∂φ is kept beside it.
"""

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_lvm.core.distributions import innermost
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import PARTICLE_PLATE, plate_dim


def uniforms(like: Tensor) -> tuple[Tensor, Tensor]:
    """u and v, one per bit: like -> two of its shape."""
    return torch.rand_like(like), torch.rand_like(like)


class RelaxedBernoulli(Messenger):
    """Draw the guide's Bernoulli site by its sign and keep (φ, b, z, z', ∂z'/∂φ) of every run."""

    def __init__(self, plan: PairStructure) -> None:
        super().__init__()
        self.plan = plan
        self.runs: list[dict[str, Tensor]] = []
        self.name = ""
        self.event_dim = 0
        self.data_dim: int | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or msg["name"] not in self.plan.score_sites:
            return
        phi = innermost(msg["fn"]).logits
        kept = _draw(phi.detach())
        kept["phi"] = phi
        if not any(f.name == PARTICLE_PLATE for f in msg["cond_indep_stack"]):
            kept = {key: value.unsqueeze(0) for key, value in kept.items()}
            msg["value"] = kept["b"][0]
        else:
            msg["value"] = kept["b"]
        msg["done"] = True
        self.name, self.event_dim = msg["name"], msg["fn"].event_dim
        self.data_dim = plate_dim(msg, self.plan.data_plate)
        self.runs.append(kept)

    def kept(self) -> dict[str, Tensor]:
        """phi, b, z, z2, dz2 of all particles: (K, ...) each."""
        return {key: torch.cat([run[key] for run in self.runs]) for key in self.runs[0]}

    def per_bit(self, value: Tensor, bits: Tensor) -> Tensor:
        """(K, B), or (K, 1), in the shape that broadcasts over bits (K, ...)."""
        shape = [len(bits)] + [1] * (bits.dim() - 1)
        if self.data_dim is not None:
            shape[bits.dim() - self.event_dim + self.data_dim] = value.shape[1]
        return value.reshape(shape)

    def per_row(self, bits: Tensor) -> Tensor:
        """A datum's bits in one row: (K, ...) -> (K, B, D)."""
        if self.data_dim is None:
            return bits.reshape(len(bits), 1, -1)
        at = bits.dim() - self.event_dim + self.data_dim
        return bits.movedim(at, 1).reshape(len(bits), bits.shape[at], -1)


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
