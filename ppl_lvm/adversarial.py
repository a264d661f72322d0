"""Train a model that can only be drawn from, against a discriminator that tells it from data.

    found = fit_adversarially(Implicit(latent=2), x, objective=maximum_likelihood)
    found.generator.draw(100), found.two_sample(held_out)

Steps alternate: the discriminator's a(x) follows log p_D(x) - log p_G(x), the generator descends
the mean of f(a(G(z))), with f from `ppl_lvm.density_ratio`. There is no bound to watch, and the two
may circle each other; `penalty` damps that, and the two-sample test says where it has led.

References:
    Goodfellow et al. (2014). Generative adversarial nets. https://arxiv.org/abs/1406.2661
    Mescheder, Geiger, Nowozin (2018). Which training methods for GANs do actually converge?
    https://arxiv.org/abs/1801.04406 (the penalty R1 of section 4.1)
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppl_lvm import objectives
from ppl_lvm.density_ratio import Discriminator, logistic_loss, non_saturating
from ppl_lvm.diagnostics.predictive import TwoSample
from ppl_lvm.diagnostics.two_sample import discriminate


@dataclass(frozen=True)
class Adversaries:
    """A generator and its discriminator after training.

    Attributes:
        generator: `draw(n)` gives rows (n, P).
        discriminator: a(x) ≈ log p_D(x) - log p_G(x), (N,) of rows (N, P).
        history: "jensen_shannon": log 2 - L/2 at each step, which estimates a lower bound on
            JS(p_D, p_G) on the draws of that step, nats; "generator": the mean of f.
    """

    generator: Any
    discriminator: nn.Module
    history: dict[str, list[float]]

    def two_sample(self, x: Tensor, *, seed: int = 0) -> TwoSample:
        """Can a new discriminator of the same kind tell these rows from as many draws?"""
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            drawn = self.generator.draw(len(x))
        fresh = copy.deepcopy(self.discriminator)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for part in fresh.modules():
                reset = getattr(part, "reset_parameters", None)
                if reset is not None:
                    reset()
        return discriminate(x, drawn, discriminator=fresh, seed=seed)


def fit_adversarially(
    generator: Any,
    x: Tensor,
    *,
    objective: Callable[[Tensor], Tensor] = non_saturating,
    discriminator: nn.Module | None = None,
    num_steps: int = 2000,
    batch_size: int = 256,
    discriminator_steps: int = 2,
    penalty: float = 0.003,
    optimizer: Any = "Adam(lr=0.002, betas=(0.5, 0.9))",
    seed: int = 0,
) -> Adversaries:
    """Train copies of a generator and a discriminator on rows x (N, P).

    Args:
        generator: a module with `draw(n)`, rows (n, P) with gradients; `initialize(x)` is called
            where it has one.
        objective: f: `minimax`, `non_saturating` or `maximum_likelihood`.
        discriminator: a module (N, P) -> (N,); by default a `Discriminator`.
        num_steps: updates of the generator.
        batch_size: rows of data and draws of each update.
        discriminator_steps: its updates before each of the generator's.
        penalty: γ of γ/2 E_D ‖∇a(x)‖², added to the discriminator's loss, in the units of x. With
            0 its optimum is the log density ratio, and training may circle; with γ > 0 it is a
            flatter function.
        optimizer: of both, as `fit` takes it.
        seed: of every random number.

    Raises:
        ValueError: for data that are no rows, or options out of range.
        FloatingPointError: a loss is not finite; names whose, and the step.
    """
    if x.dim() != 2 or not x.is_floating_point() or not len(x):
        raise ValueError(f"fit_adversarially takes rows (N, P) of numbers, got {tuple(x.shape)}.")
    for name, value in (("num_steps", num_steps), ("discriminator_steps", discriminator_steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if penalty < 0 or batch_size < 1:
        raise ValueError(f"penalty >= 0 and batch_size >= 1, please; got {penalty}, {batch_size}.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        G = copy.deepcopy(generator)
        if hasattr(G, "initialize"):
            G.initialize(x)
        a = Discriminator(x) if discriminator is None else copy.deepcopy(discriminator)
        of_a = objectives.optimizer(optimizer, list(a.parameters()))
        of_g = objectives.optimizer(optimizer, list(G.parameters()))
        history: dict[str, list[float]] = {"jensen_shannon": [], "generator": []}
        for step in range(num_steps):
            for _ in range(discriminator_steps):
                rows = x[torch.randint(len(x), (batch_size,), device=x.device)]
                with torch.no_grad():
                    drawn = G.draw(batch_size)
                loss = logistic_loss(a(rows), a(drawn))
                _step(of_a, loss + _penalty(a, rows, penalty), "discriminator", step)
            cost = objective(a(G.draw(batch_size))).mean()
            _step(of_g, cost, "generator", step)
            history["jensen_shannon"].append(math.log(2) - loss.item() / 2)
            history["generator"].append(cost.item())
    return Adversaries(G, a, history)


def _penalty(a: nn.Module, rows: Tensor, weight: float) -> Tensor | float:
    if weight == 0:
        return 0.0
    rows = rows.detach().requires_grad_()
    (slope,) = torch.autograd.grad(a(rows).sum(), rows, create_graph=True)
    return 0.5 * weight * slope.square().sum(-1).mean()


def _step(optimizer: Any, loss: Tensor, whose: str, step: int) -> None:
    if not math.isfinite(loss.item()):
        raise FloatingPointError(
            f"The {whose}'s loss is {loss.item()} at step {step}. Lower the learning rate, raise "
            "the penalty, or use objective=non_saturating, whose values grow slowest."
        )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
