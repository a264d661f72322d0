"""Smoothness of a program in relaxed draws.

Pathwise gradients of relaxed draws need log-densities that are differentiable in the draws. A
comparison, a rounding, an index or a `detach` cuts the derivative: log p then jumps, or changes
without a derivative, and the gradient is biased. Such operations are found by dependence, from one
run of the programs at relaxed draws.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppl_lvm.core.frames import in_package, line_of, module_name
from ppl_lvm.core.messages import reason_of
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.particles.log_prob_tables import PairRun
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import PROGRAM_ERRORS

# They do not read values: only shapes, types, or the finiteness of their argument.
_VALUE_FREE = {
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
    "new_zeros",
    "new_ones",
    "new_empty",
    "new_full",
    "new_tensor",
    "isnan",
    "isinf",
    "isfinite",
}
_SHAPE_OF_SECOND = {"expand_as", "view_as", "reshape_as", "type_as", "to"}
_STEPS = {
    "sign",
    "sgn",
    "floor",
    "ceil",
    "round",
    "trunc",
    "fix",
    "frac",
    "fmod",
    "remainder",
    "heaviside",
    "floor_divide",
    "floordiv",
    "rfloordiv",
    "mod",
}
_PERIODIC = {"frac", "fmod", "remainder", "mod"}  # argument minus result is a step function
_NUMBERS = {
    "item",
    "tolist",
    "bool",
    "float",
    "int",
    "index",
    "numpy",
    "array",
    "equal",
    "allclose",
}
# Checks of arguments and supports; bijections, which are continuous.
_IN_DISTRIBUTIONS = ("torch.distributions", "pyro", "ppl_lvm.nn.bijections")


@dataclass(frozen=True)
class Cut:
    """An operation that cuts a derivative.

    Attributes:
        place: its name, file and line.
        output: its result if that can jump: of a comparison, a rounding or an index; else None.
    """

    place: tuple[str, str, int]
    output: Any


class CutDerivatives(TorchFunctionMode):
    """Record operations that cut the derivative in `leaves`.

    Attributes:
        operations: what cuts it, in the order of the run.
    """

    def __init__(
        self,
        leaves: Mapping[str, Tensor],
        observe: Callable[[Cut, list[Tensor], Any], None] = lambda cut, inputs, result: None,
    ) -> None:
        super().__init__()
        self.operations: list[Cut] = []
        self._observe = observe
        self._leaves = {id(leaf) for leaf in leaves.values()}
        self._reaches: dict[Any, bool] = {}
        self._indices: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        inputs = list(_tensors([*args, *kwargs.values()]))
        if name in _SHAPE_OF_SECOND:
            inputs = inputs[:1]
        if name not in _VALUE_FREE and self._cuts(name, inputs, result):
            place = _place()
            if place is not None:
                cut = Cut((name, *place), _jumping(name, inputs, result))
                self.operations.append(cut)
                self._observe(cut, inputs, result)
        return result

    def _cuts(self, name: str, inputs: list[Tensor], result: Any) -> bool:
        if any(t is index for t in inputs for index in self._indices):
            return True
        if not any(self._depends(t) for t in inputs):
            return False
        if name in _STEPS or name in _NUMBERS:
            return True
        outputs = list(_tensors([result]))
        if not outputs or isinstance(result, tuple | list):
            # The indices of a maximum or a sorting cut the derivative only where they are used.
            self._indices += [t for t in outputs if not t.is_floating_point()]
            return False
        return not outputs[0].requires_grad

    def _depends(self, value: Tensor) -> bool:
        if id(value) in self._leaves:
            return True
        return value.grad_fn is not None and self._reaches_leaf(value.grad_fn)

    def _reaches_leaf(self, start: Any) -> bool:
        """True if a node of the graph of derivatives is a leaf, or has one below it."""
        stack = [start]
        while stack:
            node = stack[-1]
            if node in self._reaches:
                stack.pop()
                continue
            if id(getattr(node, "variable", None)) in self._leaves:
                self._reaches[node] = True
                continue
            below = [n for n, _ in node.next_functions if n is not None]
            new = [n for n in below if n not in self._reaches]
            if new:
                stack += new
                continue
            self._reaches[node] = any(self._reaches[n] for n in below)
        return self._reaches[start]


def _jumping(name: str, inputs: list[Tensor], result: Any) -> Any:
    """The part of a result that can jump, or None."""
    if name in _PERIODIC:
        return inputs[0] - result
    if not isinstance(result, Tensor):
        return result if isinstance(result, bool) or name in ("int", "index") else None
    return result if name in _STEPS or not result.is_floating_point() else None


def _tensors(values: list[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(list(value))


def _place() -> tuple[str, int] | None:
    """The line outside torch that called an operation; None inside a distribution."""
    frame = sys._getframe(2)
    while frame is not None:
        module = module_name(frame)
        if in_package(module, *_IN_DISTRIBUTIONS):
            return None
        if not in_package(module, "torch") and module != __name__:
            return line_of(frame)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def smoothness_problem(run: PairRun, structure: PairStructure) -> str | None:
    """Describe an operation that is not smooth in relaxed draws of the score sites, or None."""
    with preserve_rng():
        with torch.no_grad():
            sites, _ = run(None)
        values = {n: s["value"].detach() for n, s in sites.items()}
        leaves = {n: _relaxed(values[n], structure.latents[n]) for n in structure.score_sites}
        try:
            with torch.enable_grad(), CutDerivatives(leaves) as mode:
                run(None, values={**values, **leaves})
        except PROGRAM_ERRORS as error:
            return f"a program fails there: {reason_of(error).rstrip('.')}"
    if not mode.operations:
        return None
    operation, file, line = mode.operations[0].place
    return f"{file}:{line} ({operation}) is not a smooth function of them"


def _relaxed(value: Tensor, family: str) -> Tensor:
    """A leaf between the corners of the support."""
    point = 0.25 + 0.5 * torch.rand_like(value)
    return (point if family == "Bernoulli" else point.softmax(-1)).requires_grad_()
