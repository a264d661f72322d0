"""`CompiledSVI`: `pyro.infer.SVI` whose step is taken from a recording once it can be."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ppl_lvm.engine.flat import FlatOptimizer, Owned
from ppl_lvm.engine.gradient import Gradient

Level = Literal["auto", "eager", "captured", "compiled"]


class _Parameters(Messenger):
    """Collects unconstrained parameters by identity: two modules may use one name."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        tensor = msg["value"].unconstrained()
        self.tensors[id(tensor)] = tensor


class CompiledSVI:
    """Stochastic variational inference, with the call and the result of `pyro.infer.SVI`.

    Args:
        model, guide: as for SVI.
        optimizer: a `pyro.optim` optimiser, or a function of a list of parameters that returns a
            torch one, such as `functools.partial(torch.optim.Adam, lr=0.01)`.
        loss: a `pyro.infer.ELBO`, Pyro's or ours.
        engine: "eager" is Pyro's own step. "captured" takes steps from a recording, and raises
            `CannotCaptureError` for a program that cannot be recorded. "compiled" has the
            recording and the update compiled. "auto" captures where possible and otherwise goes
            on eagerly with one message.
        announce: receives the messages; the logger `ppl_lvm.engine` by default.
        max_captures: how many kinds of arguments (shapes, non-tensor values) are captured.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optimizer: PyroOptim | Callable[[list[Tensor]], Optimizer],
        loss: ELBO,
        engine: Level = "auto",
        *,
        announce: Callable[[str], None] | None = None,
        max_captures: int = 8,
    ) -> None:
        if engine not in ("auto", "eager", "captured", "compiled"):
            raise ValueError(
                f"engine={engine!r} is none of 'auto', 'eager', 'captured' and 'compiled'."
            )
        if not isinstance(loss, ELBO):
            raise ValueError(
                f"loss must be a pyro.infer.ELBO, got {type(loss).__name__}; use pyro.infer.SVI "
                "for a bare loss function."
            )
        self.model, self.guide, self.loss, self.engine = model, guide, loss, engine
        self._make_optimizer = optimizer
        self.optimizer: PyroOptim | Optimizer | None = None
        if isinstance(optimizer, PyroOptim):
            self.optimizer = optimizer
        self._found: list[Tensor] = []
        self._flat = FlatOptimizer()
        self._gradient = Gradient(
            self._loss_and_grads,
            lambda: [p for p in self._found if p.grad is not None],
            strict=engine in ("captured", "compiled"),
            watched=(model, guide, loss),
            announce=announce,
            max_captures=max_captures,
        )

    @property
    def level(self) -> str:
        """The level at which steps are taken: "eager" until something is captured."""
        return "captured" if self._gradient.num_captures else "eager"

    @property
    def num_captures(self) -> int:
        """How many kinds of arguments have been captured."""
        return self._gradient.num_captures

    @property
    def refusal(self) -> str | None:
        """Why steps are eager, if the program cannot be captured."""
        return str(self._gradient.refusal) if self._gradient.refusal is not None else None

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one step on a batch; the loss (a float, or a tuple of them), a sum over all data."""
        if self.engine == "eager":
            loss = self._loss_and_grads(*args, **kwargs)
        else:
            loss = self._gradient(*args, **kwargs)
        parameters = [p for p in self._found if p.grad is not None]
        self._update(parameters)
        for p in parameters:
            p.grad = None
        return pytree.tree_map(lambda v: v.item() if isinstance(v, Tensor) else v, loss)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss on a batch, without a step."""
        with torch.no_grad():
            loss = self.loss.loss(self.model, self.guide, *args, **kwargs)
        return pytree.tree_map(lambda v: v.item() if isinstance(v, Tensor) else v, loss)

    def _loss_and_grads(self, *args: Any, **kwargs: Any) -> Any:
        with _Parameters() as found:
            loss = self.loss.loss_and_grads(self.model, self.guide, *args, **kwargs)
        self._found = list(found.tensors.values())
        return loss

    def _update(self, parameters: list[Tensor]) -> None:
        if self.optimizer is None:
            assert not isinstance(self._make_optimizer, PyroOptim)
            self.optimizer = self._make_optimizer(parameters)
        if isinstance(self.optimizer, PyroOptim):
            self._update_pyro(self.optimizer, parameters)
        elif self.engine == "eager" or not self._flat.step(owned(self.optimizer, parameters)):
            self.optimizer.step()

    def _update_pyro(self, optimizer: PyroOptim, parameters: list[Tensor]) -> None:
        if any(p not in optimizer.optim_objs for p in parameters) or self.engine == "eager":
            optimizer(parameters)  # makes an optimiser for a parameter it has not seen
            return
        places: list[Owned] = []
        for p in parameters:
            made = optimizer.optim_objs[p]
            inner = getattr(made, "optimizer", made)  # a schedule wraps its optimiser
            places.append((p, inner, inner.param_groups[0]))
        if self._flat.plan(places) is None:
            optimizer(parameters)
            return
        for p in parameters:
            if optimizer.grad_clip[p] is not None:
                optimizer.grad_clip[p](p)
        self._flat.step(places)


def owned(optimizer: Optimizer, parameters: list[Tensor]) -> list[Owned]:
    """Each parameter with its optimiser and its group there; those it does not own are left out."""
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return [(p, optimizer, group_of[id(p)]) for p in parameters if id(p) in group_of]
