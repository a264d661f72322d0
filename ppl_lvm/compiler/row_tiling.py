"""Row tiling: steps in blocks that fit the cache.

Where a batch of B rows is a sum over rows, in blocks b of c_b rows,

    ∇ loss(batch) = Σ_b c_b/B ∇ loss(block b, standing for all B rows),

and a table of K components x B rows x P columns never has to be in memory at once. It holds for
programs that draw no random numbers and keep no state from step to step (enumerated sites, point
estimates, exact densities) and whose log-density is a sum over rows. The dependence of its sites on
rows decides that, whatever the values. Numbers of rows are no dependence, so the blocks of the
first batch must also give its gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ppl_lvm.compiler.backend.compiled_step import Clip, CompiledStep
from ppl_lvm.compiler.backend.executable_step import ExecutableStep
from ppl_lvm.compiler.capture.arguments import Arguments
from ppl_lvm.compiler.capture.captured_gradient import CapturedGradient
from ppl_lvm.compiler.capture.state_snapshot import PythonStateSnapshot
from ppl_lvm.compiler.graph.ir import Recording
from ppl_lvm.compiler.optim.flat import FlatGroup, ParameterGroup
from ppl_lvm.compiler.optim.update_rules import Rule, Scalars
from ppl_lvm.compiler.passes import PIPELINE, Pass
from ppl_lvm.core.errors import CannotCaptureError

_SOME_ROWS = 40  # rows on which the dependence is followed: more than there are labels


@dataclass(frozen=True)
class RowBlocks:
    """A program on blocks of rows.

    Attributes:
        run: (rows of the batch, *block) -> the program's result on a block that stands for the
            rows of the whole batch.
        sums_over_rows: True if the loss of this batch is a sum over rows, whatever the values.
    """

    run: Callable[..., Any]
    sums_over_rows: Callable[[tuple[Tensor, ...]], bool]


@dataclass(frozen=True)
class TileSizes:
    """Limits of tiling.

    Attributes:
        min_rows: a batch of fewer rows is one block.
        block_bytes: of a block's largest table.
        min_blocks: fewer blocks gain nothing.
    """

    min_rows: int = 8192
    block_bytes: int = 8 * 2**20
    min_blocks: int = 4

    def rows_per_block(self, rows: int, largest: int) -> int | None:
        """Rows of a block where the largest table of `rows` has so many bytes; None for one block.

        Blocks of equal size are preferred.
        """
        most = self.block_bytes * rows // max(largest, 1)
        if rows < self.min_rows or rows < self.min_blocks * most or most < 1:
            return None
        even = [size for size in range(most, most // 2, -1) if rows % size == 0]
        return even[0] if even else most


TILE_SIZES = TileSizes()


class TiledStep(ExecutableStep):
    """A step that adds up the gradients of blocks. Made by `tile_rows`.

    Args:
        recording: of the whole batch.
        block, rest: recordings of a block, and of the last one if it is smaller.
        size: rows of a block.
        parameters, groups, batch, clip, guarded, passes: as for `CompiledStep`.
    """

    groups: list[FlatGroup]

    def __init__(
        self,
        recording: Recording,
        block: Recording,
        rest: Recording | None,
        size: int,
        parameters: Sequence[Tensor],
        groups: list[FlatGroup],
        batch: list[Tensor],
        clip: Clip | None = None,
        guarded: bool = False,
        passes: Sequence[Pass] = PIPELINE,
    ) -> None:
        super().__init__(recording, groups)
        self._block, self._rest, self._size = block, rest, size
        self.parameters, self._clip, self._guarded = list(parameters), clip, guarded
        self.sums = [GradientSum(group) for group in groups]
        self._inner = CompiledStep(
            block, parameters, self.sums, next(self.blocks(batch)), passes=passes
        )

    def take(
        self, batch: list[Tensor], after_scalars: Callable[[], None] | None = None
    ) -> list[Tensor]:
        losses = self.add_up(batch)
        scalars = [group.scalars() for group in self.groups]
        if after_scalars is not None:
            after_scalars()
        if not self._guarded or all(bool(loss.isfinite().all()) for loss in losses):
            for group, total, h in zip(self.groups, self.sums, scalars, strict=True):
                gradient = self._clipped(group, total.sum)
                group.rule.update(group.vector, gradient, group.moments, h, group.options)
        return losses

    def add_up(self, batch: list[Tensor]) -> list[Tensor]:
        """Leave the gradient of a batch in the sums; the losses, flat."""
        losses: list[Tensor] = []
        for total in self.sums:
            total.sum.zero_()
        for block in self.blocks(batch):
            weight = len(block[0]) / len(batch[0])
            for total in self.sums:
                total.weight = weight
            if len(block[0]) == self._size:
                block_losses = self._inner.take(block)
            else:
                block_losses, gradients = self.replay(block)
                for total, gradient in zip(self.sums, gradients, strict=True):
                    total.sum.add_(gradient, alpha=weight)
            scaled = [weight * loss for loss in block_losses]
            losses = [a + b for a, b in zip(losses, scaled, strict=True)] if losses else scaled
        return losses

    def replay(
        self, block: list[Tensor], leaves: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """`evaluate` for a block, without compiled code."""
        full = len(block[0]) == self._size or self._rest is None
        recording = self._block if full else self._rest
        assert recording is not None
        return self.evaluate(recording, block, leaves)

    def evaluate(
        self, recording: Recording, batch: list[Tensor], leaves: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The losses and the gradient, a vector for each group; at other parameters if `leaves`."""
        leaves = self.parameters if leaves is None else leaves
        out = recording.module(*leaves, *batch, *recording.sources, *recording.constants)
        losses, gradients = list(out[: recording.num_losses]), out[recording.num_losses :]
        trained = recording.trained(self.parameters)
        by_id = {id(p): g.reshape(-1) for p, g in zip(trained, gradients, strict=True)}
        return losses, [torch.cat([by_id[id(p)] for p in g.parameters]) for g in self.groups]

    @property
    def ready(self) -> bool:
        return self._inner.ready

    @property
    def graph(self) -> fx.GraphModule:
        return self._inner.graph  # of a block

    def inputs(self, batch: list[Tensor]) -> list[Tensor]:
        return self._inner.inputs(next(self.blocks(batch)))

    def compile(self, batch: list[Tensor], same_random: bool) -> None:
        self._inner.compile(next(self.blocks(batch)), same_random)

    def blocks(self, batch: list[Tensor]) -> Iterator[list[Tensor]]:
        """The rows of a batch, block by block."""
        for start in range(0, len(batch[0]), self._size):
            yield [tensor[start : start + self._size] for tensor in batch]

    def _clipped(self, group: FlatGroup, gradient: Tensor) -> Tensor:
        if self._clip is None:
            return gradient
        pairs = zip(group.parameters, group.views(gradient), strict=True)
        return torch.cat([self._clip(p, piece).reshape(-1) for p, piece in pairs])


class GradientSum(ParameterGroup):
    """The sum of weighted gradients of blocks, as the moment of a rule that moves no parameter."""

    def __init__(self, group: FlatGroup) -> None:
        self.parameters, self.vector = group.parameters, group.vector
        self.sum = torch.zeros_like(group.vector)
        self.moments = [self.sum]
        self.weight = 1.0  # of the next block
        self.options = {}
        self.count = 0
        self.rule = Rule((), (), lambda options, step: [1.0], _add, None)

    def scalars(self) -> list[float]:
        return [self.weight]

    def undo_count(self, steps: int = 1, rate: Any = None) -> None:
        """Do nothing: blocks are not counted."""


def _add(p: Tensor, g: Tensor, moments: list[Tensor], h: Scalars, o: dict[str, Any]) -> None:
    moments[0].add_(g * h[0])


@torch.no_grad()
def tile_rows(
    blocks: RowBlocks,
    gradient: CapturedGradient,
    arguments: Arguments,
    recording: Recording,
    groups: list[FlatGroup],
    clip: Clip | None,
    guarded: bool,
) -> TiledStep | None:
    """The step in blocks; None where one block is enough, or the loss is no sum over them.

    Args:
        blocks: the program on a block.
        gradient: of the whole batch, with its `recording` for these `arguments`.
    """
    batch = arguments.tensors
    if not arguments.positional or not batch or recording.mutated or recording.draws:
        return None
    if any(t.dim() == 0 or t.device.type != "cpu" or len(t) != len(batch[0]) for t in batch):
        return None
    size = TILE_SIZES.rows_per_block(len(batch[0]), recording.tables[0])
    if size is None or not blocks.sums_over_rows(tuple(t[:_SOME_ROWS] for t in batch)):
        return None
    recordings = _record_blocks(blocks, gradient, batch, recording, size)
    if recordings is None:
        return None
    first, *rest = recordings
    step = TiledStep(
        recording,
        first,
        rest[0] if rest else None,
        size,
        gradient.parameters,
        groups,
        batch,
        clip,
        guarded,
        gradient.passes,
    )
    return step if _adds_up(step, batch) else None


def _record_blocks(
    blocks: RowBlocks,
    gradient: CapturedGradient,
    batch: list[Tensor],
    recording: Recording,
    size: int,
) -> list[Recording] | None:
    """Recordings of a block and of the smaller last one; None if they cannot be captured."""
    rows = len(batch[0])
    of_block = CapturedGradient(
        partial(blocks.run, rows),
        gradient.parameters,
        strict=True,
        watched=gradient.watched,
        passes=gradient.passes,
    )
    recordings = []
    for count in (size, rows % size):
        if count == 0:
            continue
        part = tuple(tensor[:count] for tensor in batch)
        try:
            with torch.enable_grad():
                of_block.dry_run_capture(part, {}, PythonStateSnapshot(gradient.watched))
        except CannotCaptureError:
            return None
        of_part = of_block.lookup(part, {})[1]
        if of_part is None or of_part.mutated or of_part.active != recording.active:
            return None
        recordings.append(of_part)
    return recordings


def _adds_up(step: TiledStep, batch: list[Tensor]) -> bool:
    """True if the blocks give the first loss and the gradient of the whole batch, to rounding.

    Parameters that are zero, which hide a term, have other values here. Near an optimum the
    gradient of the whole batch is rounding error. The scale of its error is the mean size of the
    blocks' gradients, which do not vanish there.
    """
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.where(p == 0, 0.1 * torch.rand(p.shape, generator=generator).to(p), p)
        for p in step.parameters
    ]
    losses, expected = step.evaluate(step.recording, batch, leaves)
    loss = torch.zeros_like(losses[0])
    sums, sizes = [[torch.zeros_like(g) for g in expected] for _ in range(2)]
    for block in step.blocks(batch):
        weight = len(block[0]) / len(batch[0])
        block_losses, gradients = step.replay(block, leaves)
        loss += weight * block_losses[0]
        for total, size, gradient in zip(sums, sizes, gradients, strict=True):
            total += weight * gradient
            size += weight * gradient.abs()
    if not (loss - losses[0]).abs() <= _tolerance(loss, 1e-5) * losses[0].abs():
        return False
    return all(
        bool((total - g).abs().max() <= _tolerance(g, 1e-3) * size.max())
        for total, size, g in zip(sums, sizes, expected, strict=True)
    )


def _tolerance(tensor: Tensor, single: float) -> float:
    return 1e-9 if tensor.dtype is torch.float64 else single
