"""The whole step, gradient and update, as one function compiled by torch's inductor.

    compiled(vectors, moments, numbers, batch, sources) -> losses

with parameters and moments as flat vectors that are changed in place. The graph is traced once
from the recording and the optimiser's rule on fake tensors and handed to the inductor itself, so
that nothing stands between a call and the machine code: no Dynamo, no guards (the recording's key
is the guard).

With `same_random` the compiled step draws from torch's generator what the eager step would draw;
without, random numbers come from the inductor's own counter-based generator, seeded from it.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_lvm.engine.flat import FlatGroup
from ppl_lvm.engine.recording import Recording

Clip = Callable[[Tensor, Tensor], Tensor]  # (a parameter, its gradient) -> the gradient to use


class CompiledStep:
    """One compiled step for one kind of arguments.

    Args:
        recording: the step's graph.
        parameters: leaf tensors in the order that the recording takes them.
        groups: the flat vectors that hold them, with their rules.
        batch: tensors of the shapes that this step will serve.
        clip: changes a gradient before the update; None leaves it.
        same_random: draw the eager step's random numbers.

    Raises:
        Exception: whatever the inductor raises, such as for want of a C++ compiler.
    """

    def __init__(
        self,
        recording: Recording,
        parameters: Sequence[Tensor],
        groups: list[FlatGroup],
        batch: list[Tensor],
        clip: Clip | None = None,
        same_random: bool = True,
    ) -> None:
        begun = time.perf_counter()
        self.recording, self.groups = recording, groups
        self._parameters, self._clip = list(parameters), clip
        self._places = {id(p): place for place, p in enumerate(parameters)}
        self.constants = [c for c in recording.constants if c.dim() > 0]
        self._scalars = [(c.item(), c.dtype, c.device) for c in recording.constants if c.dim() == 0]
        self.numbers = [
            torch.zeros(len(g.rule.numbers(dict(g.options), 1)), dtype=g.vector.dtype)
            for g in groups
        ]
        self._tables = [numbers.numpy() for numbers in self.numbers]
        state = [[g.vector, *g.moments] for g in groups]
        example = (state, self.numbers, list(batch), recording.sources, self.constants)
        self.state, self._spec = self._flatten(state), pytree.tree_structure(example)
        self._compiled = self._compile(pytree.tree_leaves(example), same_random)
        self.seconds = time.perf_counter() - begun

    def __call__(self, batch: list[Tensor]) -> Any:
        """Take one step; the losses as the program returns them."""
        for group, table in zip(self.groups, self._tables, strict=True):
            table[:] = group.numbers()
        with torch.no_grad():
            losses = self._compiled(
                *self.state, *self.numbers, *batch, *self.recording.sources, *self.constants
            )
        return self.recording.losses(losses)

    @staticmethod
    def _flatten(state: list[list[Tensor]]) -> list[Tensor]:
        return [tensor for vectors in state for tensor in vectors]

    def trace(self, *flat: Tensor) -> list[Tensor]:
        """The step as a function of tensors: what is traced."""
        state, numbers, batch, sources, constants = pytree.tree_unflatten(flat, self._spec)
        leaves: list[Any] = list(self._parameters)  # those without gradient are not read
        for group, (vector, *_) in zip(self.groups, state, strict=True):
            for p, view in zip(group.parameters, group.views(vector), strict=True):
                leaves[self._places[id(p)]] = view
        recording = self.recording
        given, scalars = iter(constants), iter(self._scalars)
        filled = []  # scalars stand in the graph as numbers, for the compiler to fold
        for constant in recording.constants:
            if constant.dim() > 0:
                filled.append(next(given))
            else:
                value, dtype, device = next(scalars)
                filled.append(torch.full((), value, dtype=dtype, device=device))
        out = recording.module(*leaves, *batch, *sources, *filled)
        active = [p for p, used in zip(self._parameters, recording.active, strict=True) if used]
        gradients = {id(p): g for p, g in zip(active, out[recording.num_losses :], strict=True)}
        for group, (vector, *moments), h in zip(self.groups, state, numbers, strict=True):
            pieces = [self._clipped(p, gradients[id(p)]) for p in group.parameters]
            gradient = torch.cat([piece.reshape(-1) for piece in pieces])
            group.rule.update(vector, gradient, moments, list(h), group.options)
        return list(out[: recording.num_losses])

    def _clipped(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient if self._clip is None else self._clip(parameter, gradient)

    def _compile(self, flat: list[Tensor], same_random: bool) -> Callable[..., Any]:
        # Imported here: the inductor takes a second that captured runs need not wait for.
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx
        from torch.fx.experimental.proxy_tensor import make_fx

        options = {"fallback_random": same_random}
        with torch.no_grad(), warnings.catch_warnings(), config.patch(options):
            warnings.simplefilter("ignore")  # the compiler's remarks on its own internals
            graph = make_fx(self.trace, tracing_mode="fake")(*flat)
            compiled = cast(Callable[..., Any], compile_fx(graph, flat))
            self._check(compiled, flat, same_random)
        return compiled

    def _check(self, compiled: Callable[..., Any], flat: list[Tensor], same_random: bool) -> None:
        """Take the step on copies, compiled and not: the same losses and the same new state.

        Parameters are left out under Adam's rules, which make a whole step of the rounding error
        of a gradient that is zero; its moments hold the same gradient.
        """
        for numbers, group in zip(self.numbers, self.groups, strict=True):
            numbers.copy_(torch.tensor(group.rule.numbers(dict(group.options), group.count + 1)))
        before = torch.get_rng_state()
        changed = {id(tensor) for tensor in self.state}
        changed |= {id(self.recording.sources[place]) for place in self.recording.mutated}
        ours, theirs = [
            [tensor.clone() if id(tensor) in changed else tensor for tensor in flat]
            for _ in range(2)
        ]
        found = [*compiled(*ours), *ours]
        torch.set_rng_state(before)
        expected = [*self.trace(*theirs), *theirs]
        torch.set_rng_state(before)
        start = len(found) - len(flat)
        left_out, place = set(), start
        for group in self.groups:
            if len(group.moments) == 2:
                left_out.add(place)
            place += 1 + len(group.moments)
        for at, (got, wanted) in enumerate(zip(found, expected, strict=True)):
            if not same_random or at in left_out or not wanted.is_floating_point():
                continue
            scale = float(wanted.abs().nan_to_num().max()) if wanted.numel() else 0.0
            if not torch.allclose(got, wanted, rtol=1e-4, atol=1e-4 * scale, equal_nan=True):
                raise RuntimeError("the compiled step differs from the captured one")
