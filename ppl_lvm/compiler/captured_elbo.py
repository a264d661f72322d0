"""An ELBO with captured steps, for loops with an optimizer.

Training plans that call `elbo.differentiable_loss(model, guide, ...)` or `elbo(model, guide)(...)`
and leave the update to a torch optimizer (those of Lightning do) take `CapturedELBO(elbo)` in place
of `elbo`: `LowLevelPyroTrainingPlan(module, loss_fn=CapturedELBO(Trace_ELBO()))` in scvi-tools.
The value of a step is then that of a recording, and its backward pass hands out the gradients that
came with it.
"""

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.optim import SGD

from ppl_lvm.compiler.capture.gradient_hooks import without_hooks
from ppl_lvm.compiler.capture.state_snapshot import modules
from ppl_lvm.compiler.svi import CompiledSVI
from ppl_lvm.core.arguments import checked
from ppl_lvm.core.levels import Level


class CapturedELBO(ELBO):
    """An ELBO with captured steps, for loops with their own optimizer.

    Args:
        elbo: a `pyro.infer.ELBO`, Pyro's or ours.
        engine: "auto" takes eager steps, after one message, where a program cannot be captured;
            "captured" raises `CannotCaptureError` for it; "eager" is the ELBO as it is.
        announce: receives the messages; the logger `ppl_lvm.compiler` by default.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> from ppl_lvm.models import PPCA
        >>> from ppl_lvm.guides import auto_guide
        >>> x, ppca = torch.randn(20, 3), PPCA(2)
        >>> loss = CapturedELBO(Trace_ELBO())(ppca, auto_guide(ppca, x))(x)
        >>> loss.backward()
    """

    @checked
    def __init__(
        self,
        elbo: ELBO,
        *,
        engine: Level = "auto",
        announce: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(
            num_particles=elbo.num_particles,
            max_plate_nesting=elbo.max_plate_nesting,
            vectorize_particles=False,
        )
        self.elbo, self._engine, self._announce = elbo, engine, announce
        self._pairs: dict[Hashable, _PairGradient] = {}

    def pair(self, model: Any, guide: Any) -> "_PairGradient":
        """The captures of a pair of programs: `level`, `num_captures`, `capture_error`."""
        key = _identity(model), _identity(guide)
        if key not in self._pairs:
            options: dict[str, Any] = {"engine": self._engine, "announce": self._announce}
            self._pairs[key] = _PairGradient(model, guide, _no_updates, self.elbo, **options)
        return self._pairs[key]

    def _get_trace(self, *args: Any) -> Any:
        return self.elbo._get_trace(*args)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        return self.elbo.loss(model, guide, *args, **kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, through which gradients flow to the parameters of both programs."""
        if not torch.is_grad_enabled() or self._engine == "eager":
            loss: Tensor = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
            return loss
        value, leaves, gradients = self.pair(model, guide).evaluate(args, kwargs)
        result: Tensor = _Replayed.apply(value, len(leaves), *leaves, *gradients)
        return result

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


def _identity(program: Any) -> Hashable:
    """Equal for two methods of one object, and for two equal handlers around one program."""
    if isinstance(program, functools.partial):  # such as poutine.scale(program, 0.1)
        keywords = tuple((name, _identity(v)) for name, v in program.keywords.items())
        parts = tuple(map(_identity, (program.func, *program.args)))
        return type(program), parts, keywords
    if isinstance(program, Messenger):
        return type(program), tuple((name, _identity(v)) for name, v in vars(program).items())
    if isinstance(program, Hashable) and not isinstance(program, Tensor):
        return program
    return _Same(program)


@dataclass(frozen=True, eq=False)
class _Same:
    """An object compared by identity, which it keeps alive."""

    value: Any

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


def _no_updates(leaves: list[Tensor]) -> SGD:
    return SGD(leaves, lr=0.0)  # never stepped


class _PairGradient(CompiledSVI):
    """Loss and gradient of one pair, without updates."""

    def evaluate(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The loss, the parameters that take part, and their gradients; `.grad` stays."""
        before = [(leaf, leaf.grad) for leaf in self._leaves()]
        for leaf, _ in before:
            leaf.grad = None
        self._detect_replacements()
        try:
            with without_hooks([leaf for leaf, _ in before]):  # the caller's backward runs them
                loss = self.training_step.gradient(*args, **kwargs)
            leaves = [leaf for leaf in self._known.values() if leaf.grad is not None]
            gradients = [leaf.grad.detach().clone() for leaf in leaves if leaf.grad is not None]
        finally:
            for leaf in self._known.values():
                leaf.grad = None
            for leaf, gradient in before:
                leaf.grad = gradient
        return torch.as_tensor(loss).detach().clone(), leaves, gradients

    def _leaves(self) -> list[Tensor]:
        """Parameters of the modules and in Pyro's store."""
        nested = modules((self.model, self.guide))
        leaves = [p for module in nested for p in module.parameters(recurse=False)]
        leaves += [value.unconstrained() for _, value in pyro.get_param_store().items()]
        return list({id(leaf): leaf for leaf in leaves}.values())

    def _loss_and_grads(self, *args: Any, **kwargs: Any) -> Any:
        loss = super()._loss_and_grads(*args, **kwargs)
        self._known |= {id(leaf): leaf for leaf in self._leaves()}
        return loss


class _Replayed(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.gradients = tensors[count:]
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        gradients = [gradient * outer[0].to(gradient) for gradient in ctx.gradients]
        return (None, None, *gradients, *(None for _ in gradients))
