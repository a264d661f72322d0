"""Adversarial training of a generator against a discriminator.

A step updates the discriminator a several times, then the generator G once:

    a descends  L(a) + γ/2 E_D ‖∇a(x)‖²
    G descends  E f(a(G(z))) with a fixed

with L, f from `ppl_lvm.divergences.density_ratio`.

References:
    Goodfellow et al. (2014). Generative adversarial nets. https://arxiv.org/abs/1406.2661
    Mescheder, Geiger, Nowozin (2018). Which training methods for GANs do actually converge?
    https://arxiv.org/abs/1801.04406 (the penalty R1 of section 4.1)
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ppl_lvm.core import torch_specs
from ppl_lvm.core.console import Progress
from ppl_lvm.core.rng import random_state, set_random_state
from ppl_lvm.core.storage import pack, strip_prefix, unpack
from ppl_lvm.divergences.density_ratio import logistic_loss
from ppl_lvm.training.options import AdversarialOptions


class Game:
    """A generator G and a discriminator a, trained in place on rows x (N, P).

    Attributes:
        history: see `Adversaries`.

    Args:
        generator: has `draw(n)` -> rows (n, P).
        discriminator: rows (N, P) -> a(x) (N,).
        f: maps a(x) to the generator's loss.
    """

    def __init__(
        self,
        generator: Any,
        discriminator: nn.Module,
        x: Tensor,
        f: Callable[[Tensor], Tensor],
        rules: AdversarialOptions,
        progress: Progress,
    ) -> None:
        self.G, self.a, self._x, self._f, self._rules = generator, discriminator, x, f, rules
        self._discriminator_optimizer = torch_specs.optimizer(
            rules.optimizer, list(self.a.parameters())
        )
        self._generator_optimizer = torch_specs.optimizer(
            rules.optimizer, list(self.G.parameters())
        )
        self.history: dict[str, list[float]] = {"jensen_shannon": [], "generator": []}
        self._progress = progress

    def run(self, num_steps: int, after_iteration: Callable[[], None] = lambda: None) -> None:
        """Train up to `num_steps` steps in all, calling `after_iteration` after each.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        self._progress.done = len(self.history["generator"])
        with self._progress:
            while (step := len(self.history["generator"])) < num_steps:
                self._step(step)
                self._progress.advance(step + 1, self.history["jensen_shannon"][-1], ())
                after_iteration()

    def _step(self, step: int) -> None:
        B = self._rules.batch_size
        for _ in range(self._rules.discriminator_steps):
            rows = self._x[torch.randint(len(self._x), (B,), device=self._x.device)]
            with torch.no_grad():
                samples = self.G.draw(B)
            loss = logistic_loss(self.a(rows), self.a(samples))
            penalty = _penalty(self.a, rows, self._rules.penalty)
            _descend(self._discriminator_optimizer, loss + penalty, "discriminator", step)
        cost = self._f(self.a(self.G.draw(B))).mean()
        _descend(self._generator_optimizer, cost, "generator", step)
        self.history["jensen_shannon"].append(math.log(2) - loss.item() / 2)
        self.history["generator"].append(cost.item())

    # Checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Parameters, buffers, optimizer states and random states by name."""
        tensors = state(self.G, self.a) | random_state()
        for role, optimizer in self._optimizers():
            tensors |= pack(f"optimizer/{role}", optimizer.state_dict())[1]
        return tensors

    def progress(self) -> dict[str, Any]:
        """History and optimizer structure as plain data."""
        packed = {role: pack(f"optimizer/{role}", o.state_dict()) for role, o in self._optimizers()}
        return {"history": self.history, "optimizers": {r: p[0] for r, p in packed.items()}}

    def load(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Continue from the values of `tensors()` and `progress()`."""
        load_state(self.G, self.a, tensors)
        for role, optimizer in self._optimizers():
            optimizer.load_state_dict(unpack(progress["optimizers"][role], tensors))
        self.history = progress["history"]
        set_random_state(tensors)

    def _optimizers(self) -> list[tuple[str, Any]]:
        return [
            ("generator", self._generator_optimizer),
            ("discriminator", self._discriminator_optimizer),
        ]


def state(generator: nn.Module, discriminator: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of both by name."""
    return {
        f"{role}/{name}": t
        for role, module in (("generator", generator), ("discriminator", discriminator))
        for name, t in module.state_dict().items()
    }


def load_state(generator: nn.Module, discriminator: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load what `state` returned."""
    for role, module in (("generator", generator), ("discriminator", discriminator)):
        module.load_state_dict(strip_prefix(f"{role}/", tensors))


def _penalty(a: nn.Module, rows: Tensor, weight: float) -> Tensor | float:
    if weight == 0:
        return 0.0
    rows = rows.detach().requires_grad_()
    (slope,) = torch.autograd.grad(a(rows).sum(), rows, create_graph=True)
    return 0.5 * weight * slope.square().sum(-1).mean()


def _descend(optimizer: Any, loss: Tensor, whose: str, step: int) -> None:
    if not math.isfinite(loss.item()):
        raise FloatingPointError(
            f"The {whose}'s loss is {loss.item()} at step {step}. Lower the learning rate, raise "
            "the penalty, or use objective=non_saturating, whose values grow slowest."
        )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
