"""Gradient and update as one function compiled by Inductor.

    compiled(vectors, moments, scalars, batch, sources) -> losses

Parameters and moments are flat vectors that are changed in place. The graph is traced once, on fake
tensors, from the recording and the optimizer's rule, and given to Inductor directly: neither Dynamo
nor guards stand between a call and the machine code (the recording's key is the guard).
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from ppl_lvm.compiler.backend.cuda_graph import as_cuda_graph
from ppl_lvm.compiler.backend.decompositions import DECOMPOSITIONS
from ppl_lvm.compiler.backend.executable_step import ExecutableStep, Pauses, PerStepTensor
from ppl_lvm.compiler.backend.inductor import compile_graph, start_isa_probe
from ppl_lvm.compiler.backend.native_loop import NativeLoop, make_native_loop
from ppl_lvm.compiler.backend.numerics import equal_to_rounding
from ppl_lvm.compiler.graph.ir import Recording
from ppl_lvm.compiler.optim.flat import ParameterGroup
from ppl_lvm.compiler.passes import PIPELINE, Pass, run_passes, skip
from ppl_lvm.core.rng import RngState

# Points of the trial: distance from the present parameters, relative to their size. Near an
# optimum the gradient is rounding error, the more so the more rows it sums over.
_TRIAL_DISTANCES = (0.0, 0.01, 0.1)

Clip = Callable[[Tensor, Tensor], Tensor]  # (a parameter, its gradient) -> the gradient to use


class CompiledStep(ExecutableStep):
    """A step in one compiled function.

    Args:
        recording: the step's graph.
        parameters: leaf tensors in the order that the recording takes them.
        groups: the flat vectors that contain them, with their rules.
        batch: tensors of the shapes that this step will serve.
        clip: changes a gradient before the update; None leaves it.
        guarded: a step with a result that is not finite changes neither vectors nor moments.
        passes: graph passes; those of the stage "compile" are applied.
    """

    def __init__(
        self,
        recording: Recording,
        parameters: Sequence[Tensor],
        groups: Sequence[ParameterGroup],
        batch: list[Tensor],
        clip: Clip | None = None,
        guarded: bool = False,
        passes: Sequence[Pass] = PIPELINE,
    ) -> None:
        super().__init__(recording, groups)
        self._parameters, self._clip, self._guarded = list(parameters), clip, guarded
        self._places = {id(p): place for place, p in enumerate(parameters)}
        compile_passes = [each for each in passes if each.stage == "compile"]
        # The last pass is traced with the step: a trace of it alone would take as long again.
        self._last_pass = compile_passes[-1] if compile_passes else None
        self._rewritten = run_passes(
            compile_passes[:-1], "compile", recording, [*parameters, *batch, *recording.sources]
        )
        constants = self._rewritten.constants
        self.constants = [c for c in constants if c.dim() > 0]
        self._numbers = [(c.item(), c.dtype, c.device) for c in constants if c.dim() == 0]
        self.scalars = [
            g.vector.new_zeros(len(g.rule.step_scalars(dict(g.options), 1))) for g in groups
        ]
        # The same memory, faster to write; for a device the scalars are copied there.
        self._tables = [n.numpy() if n.device.type == "cpu" else None for n in self.scalars]
        self._state = self.state
        state = [group.state for group in groups]
        example = (state, self.scalars, list(batch), recording.sources, self.constants)
        self._spec = pytree.tree_structure(example)
        self._example = list(batch)
        self._compiled: Callable[..., Any] | None = None
        self.native_loop: NativeLoop | None = None

    def take(
        self, batch: list[Tensor], after_scalars: Callable[[], None] | None = None
    ) -> list[Tensor]:
        assert self._compiled is not None, "compile first"
        for group, table, scalars in zip(self.groups, self._tables, self.scalars, strict=True):
            if table is None:
                values = torch.tensor(group.scalars(), dtype=scalars.dtype)
                scalars.copy_(values, non_blocking=True)  # does not wait for earlier steps
            else:
                table[:] = group.scalars()
        if after_scalars is not None:
            after_scalars()
        losses: list[Tensor] = self._compiled(*self.inputs(batch))
        return losses

    def take_several(
        self,
        data: list[Tensor],
        rows: Tensor | None,
        count: int,
        schedules: Sequence[PerStepTensor] = (),
        after_scalars: Callable[[], None] | None = None,
        pauses: Pauses | None = None,
    ) -> list[Tensor] | None:
        loop = self.native_loop
        if loop is None or not loop.serves(data, rows):
            return None
        before, taken = self.count, 0
        rates = [group.options.get("lr") for group in self.groups]
        tables: list[list[list[float]]] = [[] for _ in self.groups]
        try:
            for _ in range(count):
                for group, table in zip(self.groups, tables, strict=True):
                    table.append(group.scalars())
                if after_scalars is not None:
                    after_scalars()
            changing = [(s.tensor, s.values) for s in schedules]
            for scalars, table in zip(self.scalars, tables, strict=True):
                changing.append((scalars, torch.tensor(table, dtype=scalars.dtype)))
            ends = [] if pauses is None else [at for at in pauses.after if 0 < at < count]
            parts = []
            for end in [*ends, count]:
                part = slice(taken, end)
                now = [(tensor, values[part]) for tensor, values in changing]
                begin = taken
                try:
                    of_part = None if rows is None else rows[part]
                    parts.append(loop.take(data, of_part, end - begin, now))
                finally:
                    taken = begin + loop.done
                if pauses is not None and end in pauses.after:
                    pauses.function(end)
            return [torch.cat(values) for values in zip(*parts, strict=True)]
        except BaseException:  # also an interrupt
            counted = self.count - before
            for group, rate in zip(self.groups, rates, strict=True):
                group.undo_count(counted, rate)
                for _ in range(taken):
                    group.scalars()
            raise

    @property
    def ready(self) -> bool:
        return self._compiled is not None

    def inputs(self, batch: list[Tensor]) -> list[Tensor]:
        return [*self._state, *self.scalars, *batch, *self.recording.sources, *self.constants]

    @cached_property
    def graph(self) -> fx.GraphModule:
        module = self._rewritten.module
        if self._last_pass is not None:
            try:
                function = self._last_pass.function(module, self._rewritten.constants)
                if function is not None:
                    return self._make_graph(function)
            except Exception as error:
                skip(self._last_pass.name, error)
        return self._make_graph(module)

    def _make_graph(self, function: Callable[..., Any]) -> fx.GraphModule:
        step = partial(self.trace, function)
        trace = make_fx(step, decomposition_table=DECOMPOSITIONS, tracing_mode="fake")
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trace(*self.inputs(self._example))

    def compile(self, batch: list[Tensor], same_random: bool) -> None:
        start_isa_probe()  # runs while the step is traced, if it has not run before
        flat = self.inputs(batch)
        compiled = compile_graph(self.graph, flat, same_random)
        self._check(compiled, flat, same_random)
        first = len(self._state) + len(self.scalars)
        places = range(first, first + len(batch))
        self.native_loop = make_native_loop(compiled, flat, places, self.mutated)
        self._compiled = as_cuda_graph(compiled, flat, places, self.mutated)

    def trace(self, function: Callable[..., Any], *flat: Tensor) -> list[Tensor]:
        """The step as a function of tensors, with the recording's module or a rewritten one.

        A rewritten module may take further constants after those of the recording.
        """
        state, scalars, batch, sources, constants = pytree.tree_unflatten(flat, self._spec)
        leaves: list[Any] = list(self._parameters)  # those without gradient are not read
        for group, (vector, *_) in zip(self.groups, state, strict=True):
            for p, view in zip(group.parameters, group.views(vector), strict=True):
                leaves[self._places[id(p)]] = view
        recording = self.recording
        filled = self._fill(constants)
        if function is recording.module:
            filled = filled[: len(recording.constants)]
        out = function(*leaves, *batch, *sources, *filled)
        losses = list(out[: recording.num_losses])
        active = recording.trained(self._parameters)
        gradients = {id(p): g for p, g in zip(active, out[recording.num_losses :], strict=True)}
        finite = torch.stack([loss.isfinite().all() for loss in losses]).all()
        for group, tensors, h in zip(self.groups, state, scalars, strict=True):
            pieces = [self._clipped(p, gradients[id(p)]) for p in group.parameters]
            gradient = torch.cat([piece.reshape(-1) for piece in pieces])
            before = [tensor.clone() for tensor in tensors] if self._guarded else []
            vector, *moments = tensors
            group.rule.update(vector, gradient, moments, list(h), group.options)
            for new, old in zip(tensors, before, strict=False):
                new.copy_(torch.where(finite, new, old))
        return losses

    def _fill(self, constants: list[Tensor]) -> list[Tensor]:
        """All constants; 0-dimensional ones stand in the graph as numbers, for folding."""
        tensors, numbers = iter(constants), iter(self._numbers)
        filled = []
        for constant in self._rewritten.constants:
            if constant.dim() > 0:
                filled.append(next(tensors))
            else:
                value, dtype, device = next(numbers)
                filled.append(torch.full((), value, dtype=dtype, device=device))
        return filled

    def _clipped(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient if self._clip is None else self._clip(parameter, gradient)

    @torch.no_grad()
    def _check(self, compiled: Callable[..., Any], flat: list[Tensor], same_random: bool) -> None:
        """Raise unless the compiled step gives the losses and the new state of the graph.

        Both are tried on copies. Where a run has converged its gradient is rounding error, which
        depends on the order of summation, so a step that differs is tried again farther away.
        """
        for scalars, group in zip(self.scalars, self.groups, strict=True):
            scalars.copy_(
                torch.tensor(group.rule.step_scalars(dict(group.options), group.count + 1))
            )
        if not any(self._agrees(compiled, flat, same_random, d) for d in _TRIAL_DISTANCES):
            raise RuntimeError("the compiled step differs from the captured one")

    def _agrees(
        self, compiled: Callable[..., Any], flat: list[Tensor], same_random: bool, distance: float
    ) -> bool:
        """True if the step agrees at parameters moved by this share of their size.

        Adam's rules make a whole step of the rounding error of a gradient that is zero; under them
        the moments, which hold the same gradient, are compared and the parameters are not.
        """
        before = RngState.capture()
        vectors = {id(group.vector) for group in self.groups}
        mutated = {id(tensor) for tensor in self.mutated}

        def copy(tensor: Tensor) -> Tensor:
            if id(tensor) not in vectors:
                return tensor.clone() if id(tensor) in mutated else tensor
            waves = torch.arange(len(tensor), device=tensor.device).sin().to(tensor.dtype)
            return tensor + distance * (1 + tensor.abs()) * waves

        ours, theirs = [[copy(tensor) for tensor in flat] for _ in range(2)]
        results = [*compiled(*ours), *ours]
        before.restore()
        expected = [*self.trace(self.recording.module, *theirs), *theirs]
        before.restore()
        skipped, place = set(), len(results) - len(flat)
        for group in self.groups:
            if len(group.moments) == 2:
                skipped.add(place)
            place += 1 + len(group.moments)
        return not same_random or all(
            at in skipped or equal_to_rounding(actual, target)
            for at, (actual, target) in enumerate(zip(results, expected, strict=True))
        )
