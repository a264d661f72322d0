"""A step on many rows in blocks whose intermediate results stay in the processor's cache.

Where a batch of B rows is a sum over rows, in blocks b of c_b rows,

    ∇ loss(batch) = Σ_b c_b/B ∇ loss(block b, standing for all B rows),

and a table of K components x B rows x P columns need never be in memory at once. It holds for
programs that draw nothing at random and keep no state from step to step (sites summed out, point
estimates, exact densities), with rows in the plate "data". Whether it does is not argued but
tried: the blocks of the first batch must give the gradient of the whole.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ppl_lvm.compiler.backend.compiled_step import Clip, CompiledStep
from ppl_lvm.compiler.capture.arguments import Arguments
from ppl_lvm.compiler.capture.captured_gradient import CapturedGradient
from ppl_lvm.compiler.capture.state_snapshot import PythonStateSnapshot
from ppl_lvm.compiler.errors import CannotCaptureError
from ppl_lvm.compiler.graph.build import Recording
from ppl_lvm.compiler.optim.flat import FlatGroup
from ppl_lvm.compiler.optim.update_rules import Numbers, Rule

Block = Callable[..., Any]  # (rows of the batch, *block): what the program does with a block

_ROWS = 8192  # fewer rows are one block
_BYTES = 8 * 2**20  # of a block's largest table
_BLOCKS = 4  # fewer gain nothing


class TiledStep:
    """Has the calls and attributes of `CompiledStep`. Made by `tile_rows`.

    Args:
        recording: of the whole batch.
        block, rest: recordings of a block, and of the last one if it is smaller.
        size: rows of a block.
        parameters, groups, batch, clip, guarded: as for `CompiledStep`.
    """

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
    ) -> None:
        self.recording, self.groups = recording, groups
        self._block, self._rest, self._size = block, rest, size
        self._parameters, self._clip, self._guarded = list(parameters), clip, guarded
        self.sums = [_Sum(group) for group in groups]
        sums: Any = self.sums
        self._inner = CompiledStep(block, parameters, sums, next(self.blocks(batch)))
        self.state = [tensor for g in groups for tensor in (g.vector, *g.moments)]

    def __call__(self, batch: list[Tensor]) -> Any:
        """Take one step; the losses as the program returns them."""
        with torch.no_grad():
            return self.recording.losses(self.take(batch))

    def take(self, batch: list[Tensor], between: Callable[[], None] | None = None) -> list[Tensor]:
        """Take one step, without gradients being recorded; the losses, flat.

        Args:
            between: called once the optimiser's numbers of this step have been taken.
        """
        losses = self.add_up(batch)
        numbers = [group.scalars() for group in self.groups]
        if between is not None:
            between()
        if not self._guarded or all(bool(loss.isfinite().all()) for loss in losses):
            for group, total, h in zip(self.groups, self.sums, numbers, strict=True):
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
                found = self._inner.take(block)
            else:
                found, gradients = self.replay(block)
                for total, gradient in zip(self.sums, gradients, strict=True):
                    total.sum.add_(gradient, alpha=weight)
            scaled = [weight * loss for loss in found]
            losses = [a + b for a, b in zip(losses, scaled, strict=True)] if losses else scaled
        return losses

    def replay(self, block: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The losses and the gradient of a block without compiled code, a vector for each group."""
        whole = len(block[0]) == self._size or self._rest is None
        recording = self._block if whole else self._rest
        assert recording is not None
        return self.evaluate(recording, block)

    def evaluate(
        self, recording: Recording, batch: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What a recording gives, a vector of the gradient for each group."""
        out = recording.module(*self._parameters, *batch, *recording.sources, *recording.constants)
        losses, gradients = list(out[: recording.num_losses]), out[recording.num_losses :]
        trained = recording.trained(self._parameters)
        given = {id(p): g.reshape(-1) for p, g in zip(trained, gradients, strict=True)}
        return losses, [torch.cat([given[id(p)] for p in g.parameters]) for g in self.groups]

    def undo_count(self) -> None:
        """Do not count the last step: it was guarded and has changed nothing else."""
        for group in self.groups:
            group.undo_count()

    @property
    def ready(self) -> bool:
        """Whether it has been compiled."""
        return self._inner.ready

    @property
    def graph(self) -> fx.GraphModule:
        """A block's part in aten operations."""
        return self._inner.graph

    def inputs(self, batch: list[Tensor]) -> list[Tensor]:
        """All that the compiled function takes for the first block."""
        return self._inner.inputs(next(self.blocks(batch)))

    def compile(self, batch: list[Tensor], same_random: bool) -> None:
        """Make machine code of a block's part, see `CompiledStep.compile`."""
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


class _Sum:
    """Takes the place of a `FlatGroup` where gradients are added up and parameters stay."""

    def __init__(self, group: FlatGroup) -> None:
        self.parameters, self.vector, self.views = group.parameters, group.vector, group.views
        self.sum = torch.zeros_like(group.vector)
        self.moments = [self.sum]
        self.weight = 1.0  # of the block that comes next
        self.options: dict[str, Any] = {}
        self.count = 0
        self.rule = Rule((), lambda options, step: [1.0], _add, None)

    def scalars(self) -> list[float]:
        return [self.weight]


def _add(p: Tensor, g: Tensor, moments: list[Tensor], h: Numbers, o: dict[str, Any]) -> None:
    moments[0].add_(g * h[0])


@torch.no_grad()
def tile_rows(
    block: Block,
    gradient: CapturedGradient,
    arguments: Arguments,
    recording: Recording,
    groups: list[FlatGroup],
    clip: Clip | None,
    guarded: bool,
) -> TiledStep | None:
    """The step in blocks; None where one block is enough or blocks are not the whole.

    Args:
        block: the program on a block that stands for the rows of the whole batch.
        gradient: of the whole, with its `recording` for these `arguments`.
    """
    batch = arguments.tensors
    if not arguments.positional or not batch or recording.mutated or recording.draws:
        return None
    if any(t.dim() == 0 or t.device.type != "cpu" or len(t) != len(batch[0]) for t in batch):
        return None
    size = block_size(len(batch[0]), recording.tables[0])
    if size is None:
        return None
    made = _made(block, gradient, arguments, recording, groups, clip, guarded, size)
    return made if made is not None and _is_whole(made, batch) else None


def block_size(rows: int, largest: int) -> int | None:
    """Rows of a block where the largest table of `rows` has so many bytes; None for one block."""
    most = _BYTES * rows // max(largest, 1)
    if rows < _ROWS or rows < _BLOCKS * most or most < 1:
        return None
    even = [size for size in range(most, most // 2, -1) if rows % size == 0]
    return even[0] if even else most


def _made(
    block: Block,
    gradient: CapturedGradient,
    arguments: Arguments,
    recording: Recording,
    groups: list[FlatGroup],
    clip: Clip | None,
    guarded: bool,
    size: int,
) -> TiledStep | None:
    batch = arguments.tensors
    rows = len(batch[0])
    of_block = CapturedGradient(
        partial(block, rows), gradient.parameters, strict=True, watched=gradient.watched
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
        found = of_block.lookup(part, {})[1]
        if found is None or found.mutated or found.active != recording.active:
            return None
        recordings.append(found)
    first, *rest = recordings
    return TiledStep(
        recording,
        first,
        rest[0] if rest else None,
        size,
        gradient.parameters,
        groups,
        batch,
        clip,
        guarded,
    )


def _is_whole(made: TiledStep, batch: list[Tensor]) -> bool:
    """Whether blocks give the first loss and the gradient of the whole, to rounding.

    Beside an optimum the gradient of the whole is nothing but rounding. The measure of its error
    is the mean size of the blocks' gradients, which do not vanish there.
    """
    losses, wanted = made.evaluate(made.recording, batch)
    loss = torch.zeros_like(losses[0])
    sums, sizes = [[torch.zeros_like(g) for g in wanted] for _ in range(2)]
    for block in made.blocks(batch):
        weight = len(block[0]) / len(batch[0])
        found, gradients = made.replay(block)
        loss += weight * found[0]
        for total, size, gradient in zip(sums, sizes, gradients, strict=True):
            total += weight * gradient
            size += weight * gradient.abs()
    if not (loss - losses[0]).abs() <= _rounding(loss, 1e-5) * losses[0].abs():
        return False
    return all(
        bool((total - g).abs().max() <= _rounding(g, 1e-3) * size.max())
        for total, size, g in zip(sums, sizes, wanted, strict=True)
    )


def _rounding(tensor: Tensor, single: float) -> float:
    return 1e-9 if tensor.dtype is torch.float64 else single
