"""The whole step, gradient and update, as one function compiled by torch's inductor.

    compiled(vectors, moments, numbers, batch, sources) -> losses

with parameters and moments as flat vectors that are changed in place. The graph is traced once
from the recording and the optimiser's rule on fake tensors and handed to the inductor itself, so
that nothing stands between a call and the machine code: no Dynamo, no guards (the recording's key
is the guard).
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ppl_lvm.compiler.backend.cuda_graph import in_one_launch
from ppl_lvm.compiler.backend.decompositions import DECOMPOSITIONS
from ppl_lvm.compiler.backend.inductor import compile_graph, start_isa_probe
from ppl_lvm.compiler.capture import state_snapshot as outside
from ppl_lvm.compiler.capture.tape_diff import close
from ppl_lvm.compiler.graph.build import Recording
from ppl_lvm.compiler.optim.flat import FlatGroup
from ppl_lvm.compiler.passes.sink_broadcasts import repeated_once

logger = logging.getLogger("ppl_lvm.compiler")

# Where a step is tried: how far from the parameters it has, by their size. Beside an optimum a
# gradient is nothing but rounding, the more so the more rows it is a sum of.
_ASIDE = (0.0, 0.01, 0.1)

Clip = Callable[[Tensor, Tensor], Tensor]  # (a parameter, its gradient) -> the gradient to use


class CompiledStep:
    """One step for one kind of arguments; call it after `compile`.

    Args:
        recording: the step's graph.
        parameters: leaf tensors in the order that the recording takes them.
        groups: the flat vectors that hold them, with their rules.
        batch: tensors of the shapes that this step will serve.
        clip: changes a gradient before the update; None leaves it.
        guarded: a step with a result that is not finite changes neither vectors nor moments.
    """

    def __init__(
        self,
        recording: Recording,
        parameters: Sequence[Tensor],
        groups: list[FlatGroup],
        batch: list[Tensor],
        clip: Clip | None = None,
        guarded: bool = False,
    ) -> None:
        self.recording, self.groups = recording, groups
        self._parameters, self._clip, self._guarded = list(parameters), clip, guarded
        self._places = {id(p): place for place, p in enumerate(parameters)}
        self.constants = [c for c in recording.constants if c.dim() > 0]
        self._scalars = [(c.item(), c.dtype, c.device) for c in recording.constants if c.dim() == 0]
        self.scalars = [
            g.vector.new_zeros(len(g.rule.step_scalars(dict(g.options), 1))) for g in groups
        ]
        # The same memory, quicker to write in; what lies on a device is copied there.
        self._tables = [n.numpy() if n.device.type == "cpu" else None for n in self.scalars]
        self.state = [tensor for g in groups for tensor in (g.vector, *g.moments)]
        state = [[g.vector, *g.moments] for g in groups]
        example = (state, self.scalars, list(batch), recording.sources, self.constants)
        self._spec = pytree.tree_structure(example)
        self._example = list(batch)
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, batch: list[Tensor]) -> Any:
        """Take one step; the losses as the program returns them."""
        with torch.no_grad():
            return self.recording.losses(self.take(batch))

    def take(
        self, batch: list[Tensor], after_numbers: Callable[[], None] | None = None
    ) -> list[Tensor]:
        """Take one step, without gradients being recorded; the losses, flat.

        Args:
            after_numbers: called once the optimiser's numbers of this step have been taken.
        """
        assert self._compiled is not None, "compile first"
        for group, table, numbers in zip(self.groups, self._tables, self.scalars, strict=True):
            if table is None:
                given = torch.tensor(group.scalars(), dtype=numbers.dtype)
                numbers.copy_(given, non_blocking=True)  # nor waits for the steps before
            else:
                table[:] = group.scalars()
        if after_numbers is not None:
            after_numbers()
        losses: list[Tensor] = self._compiled(*self.inputs(batch))
        return losses

    def undo_count(self) -> None:
        """Do not count the last step: it was guarded and has changed nothing else."""
        for group in self.groups:
            group.undo_count()

    @property
    def ready(self) -> bool:
        """Whether it has been compiled."""
        return self._compiled is not None

    @property
    def _changed(self) -> list[Tensor]:
        """All that a step changes."""
        return [*self.state, *(self.recording.sources[at] for at in self.recording.mutated)]

    def inputs(self, batch: list[Tensor]) -> list[Tensor]:
        """All that the compiled function takes."""
        return [*self.state, *self.scalars, *batch, *self.recording.sources, *self.constants]

    @cached_property
    def graph(self) -> fx.GraphModule:
        """The step in aten operations."""
        from torch.fx.experimental.proxy_tensor import make_fx

        def traced(module: Callable[..., Any]) -> fx.GraphModule:
            step = partial(self.trace, module)
            trace = make_fx(step, decomposition_table=DECOMPOSITIONS, tracing_mode="fake")
            return trace(*self.inputs(self._example))

        zeros = [c.dim() == 0 and not c for c in self.recording.constants]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return traced(repeated_once(self.recording.module, zeros))
            except Exception as error:  # an operation of a kind that has not been met
                logger.info("what is repeated is not computed once: %s", error)
                return traced(self.recording.module)

    def compile(self, batch: list[Tensor], same_random: bool) -> None:
        """Make machine code of the step.

        Args:
            batch: tensors to try it on, against the graph itself; nothing is changed.
            same_random: draw the eager step's random numbers.

        Raises:
            Exception: whatever the inductor raises, such as for want of a C++ compiler.
        """
        start_isa_probe()  # while the step is traced, if not before
        flat = self.inputs(batch)
        compiled = compile_graph(self.graph, flat, same_random)
        self._check(compiled, flat, same_random)
        first = len(self.state) + len(self.scalars)
        places = range(first, first + len(batch))
        self._compiled = in_one_launch(compiled, flat, places, self._changed)

    def trace(self, module: Callable[..., Any], *flat: Tensor) -> list[Tensor]:
        """The step as a function of tensors, with the recording's `module` or one of its kind."""
        state, numbers, batch, sources, constants = pytree.tree_unflatten(flat, self._spec)
        leaves: list[Any] = list(self._parameters)  # those without gradient are not read
        for group, (vector, *_) in zip(self.groups, state, strict=True):
            for p, view in zip(group.parameters, group.views(vector), strict=True):
                leaves[self._places[id(p)]] = view
        recording = self.recording
        out = module(*leaves, *batch, *sources, *self._fill(constants))
        losses = list(out[: recording.num_losses])
        active = [p for p, used in zip(self._parameters, recording.active, strict=True) if used]
        gradients = {id(p): g for p, g in zip(active, out[recording.num_losses :], strict=True)}
        fine = torch.stack([loss.isfinite().all() for loss in losses]).all()
        for group, tensors, h in zip(self.groups, state, numbers, strict=True):
            pieces = [self._clipped(p, gradients[id(p)]) for p in group.parameters]
            gradient = torch.cat([piece.reshape(-1) for piece in pieces])
            before = [tensor.clone() for tensor in tensors] if self._guarded else []
            vector, *moments = tensors
            group.rule.update(vector, gradient, moments, list(h), group.options)
            for new, old in zip(tensors, before, strict=False):
                new.copy_(torch.where(fine, new, old))
        return losses

    def _fill(self, constants: list[Tensor]) -> list[Tensor]:
        """All constants; scalars stand in the graph as numbers, for the compiler to fold."""
        given, scalars = iter(constants), iter(self._scalars)
        filled = []
        for constant in self.recording.constants:
            if constant.dim() > 0:
                filled.append(next(given))
            else:
                value, dtype, device = next(scalars)
                filled.append(torch.full((), value, dtype=dtype, device=device))
        return filled

    def _clipped(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient if self._clip is None else self._clip(parameter, gradient)

    @torch.no_grad()
    def _check(self, compiled: Callable[..., Any], flat: list[Tensor], same_random: bool) -> None:
        """Take the step on copies, compiled and not: the same losses and the same new state.

        Where a run has converged its gradient is all rounding error, of which two orders of
        summation leave different ones; so a step that differs is tried again farther away.
        """
        for numbers, group in zip(self.scalars, self.groups, strict=True):
            numbers.copy_(
                torch.tensor(group.rule.step_scalars(dict(group.options), group.count + 1))
            )
        if not any(self._agrees(compiled, flat, same_random, aside) for aside in _ASIDE):
            raise RuntimeError("the compiled step differs from the captured one")

    def _agrees(
        self, compiled: Callable[..., Any], flat: list[Tensor], same_random: bool, aside: float
    ) -> bool:
        """Whether the step agrees at the parameters moved aside by so much of their size.

        Parameters are left out under Adam's rules, which make a whole step of the rounding error
        of a gradient that is zero; its moments hold the same gradient.
        """
        before = outside.random_states()
        vectors = {id(group.vector) for group in self.groups}
        changed = {id(tensor) for tensor in self._changed}

        def copy(tensor: Tensor) -> Tensor:
            if id(tensor) not in vectors:
                return tensor.clone() if id(tensor) in changed else tensor
            waves = torch.arange(len(tensor), device=tensor.device).sin().to(tensor.dtype)
            return tensor + aside * (1 + tensor.abs()) * waves

        ours, theirs = [[copy(tensor) for tensor in flat] for _ in range(2)]
        found = [*compiled(*ours), *ours]
        outside.restore_random(before)
        expected = [*self.trace(self.recording.module, *theirs), *theirs]
        outside.restore_random(before)
        left_out, place = set(), len(found) - len(flat)
        for group in self.groups:
            if len(group.moments) == 2:
                left_out.add(place)
            place += 1 + len(group.moments)
        return not same_random or all(
            at in left_out or close(got, wanted)
            for at, (got, wanted) in enumerate(zip(found, expected, strict=True))
        )
