"""NUTS for the E-step of Monte Carlo EM.

The chain of draws from p(z | x, θ) continues while θ changes. Its state between two calls is the
last draw, the step size and the mass matrix; a resumed run continues from these three exactly.

Reference:
    Hoffman, Gelman (2014). The no-U-turn sampler. https://arxiv.org/abs/1111.4246
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.infer import NUTS
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

TREE_DEPTH = 6  # at most 63 steps: one draw need not cross the posterior

Draws = dict[str, Tensor]


class NutsSampler:
    """Draws by NUTS from p(z | x, θ) at the model's present θ.

    Args:
        warmup: steps of each adaptation of step size and mass matrix.
    """

    def __init__(self, model: Any, batch: tuple[Tensor, ...], warmup: int) -> None:
        self._model, self._warmup = model, warmup
        with _fixed_parameters(model):
            self._state, self._potential, self._transforms, _ = initialize_model(model, batch)
        self._step_size = 0.1
        self._inverse_mass: Tensor | None = None

    def draw(self, count: int, *, adapt: bool) -> tuple[Draws, float]:
        """`count` draws (S, …) by site, and the mean acceptance probability.

        Args:
            adapt: adapt step size and mass matrix before.
        """
        states = []
        with _fixed_parameters(self._model), poutine.block():
            if adapt or self._inverse_mass is None:
                self._adapt()
            kernel = self._kernel(0)
            for _ in range(count):
                self._state = kernel.sample(self._state)
                states.append(self._state)
        draws = {name: torch.stack([s[name] for s in states]).detach() for name in self._state}
        draws = {name: self._transforms[name].inv(t) for name, t in draws.items()}
        return draws, float(kernel._mean_accept_prob)

    def _adapt(self) -> None:
        kernel = self._kernel(self._warmup)
        for _ in range(self._warmup):
            self._state = kernel.sample(self._state)
        kernel.end_warmup()
        self._step_size = float(kernel.step_size)
        (self._inverse_mass,) = kernel.inverse_mass_matrix.values()  # diagonal, of all sites

    def _kernel(self, warmup: int) -> Any:
        """A kernel at the present state, which adapts during `warmup` steps."""
        kernel: Any = NUTS(
            potential_fn=self._potential,
            step_size=self._step_size,
            adapt_step_size=warmup > 0,
            adapt_mass_matrix=warmup > 0,
            max_tree_depth=TREE_DEPTH,
        )
        kernel.initial_params = self._state
        kernel.setup(warmup)
        if not warmup:
            sites = tuple(kernel.inverse_mass_matrix)
            kernel.mass_matrix_adapter.inverse_mass_matrix = {sites[0]: self._inverse_mass}
        return kernel

    # Checkpoint

    def tensors(self) -> dict[str, Tensor]:
        """State and mass matrix by name."""
        tensors = {f"state/{name}": t.detach() for name, t in self._state.items()}
        if self._inverse_mass is not None:
            tensors["mass"] = self._inverse_mass
        return tensors

    def progress(self) -> dict[str, Any]:
        """The step size."""
        return {"step_size": self._step_size}

    def load(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Continue from `tensors` and `progress`."""
        self._state = {n: tensors[f"state/{n}"].to(t) for n, t in self._state.items()}
        mass = tensors.get("mass")
        self._inverse_mass = None if mass is None else mass.to(next(iter(self._state.values())))
        self._step_size = progress["step_size"]


@contextmanager
def _fixed_parameters(model: Any) -> Iterator[None]:
    """Inside, the parameters have no gradients: they are constants of the chain."""
    leaves = [p for p in model.parameters() if p.requires_grad]
    for leaf in leaves:
        leaf.requires_grad_(False)
    try:
        with warnings.catch_warnings():  # Pyro warns that they are not trained
            warnings.filterwarnings("ignore", message=".*not registered in the param store")
            yield
    finally:
        for leaf in leaves:
            leaf.requires_grad_(True)
