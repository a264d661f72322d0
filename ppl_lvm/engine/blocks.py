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

from ppl_lvm.engine.arguments import Arguments
from ppl_lvm.engine.compiled import ASIDE, Clip, CompiledStep, close
from ppl_lvm.engine.flat import FlatGroup
from ppl_lvm.engine.gradient import Gradient
from ppl_lvm.engine.outside import Snapshot
from ppl_lvm.engine.recording import Recording
from ppl_lvm.engine.refusal import CannotCaptureError
from ppl_lvm.engine.updates import Numbers, Rule

Block = Callable[..., Any]  # (rows of the batch, *block): what the program does with a block

_ROWS = 8192  # fewer rows are one block
_BYTES = 8 * 2**20  # of a block's largest table
_BLOCKS = 4  # fewer gain nothing


class BlockedStep:
    """Has the calls and attributes of `CompiledStep`. Made by `in_blocks`.

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
        self._inner = CompiledStep(block, parameters, sums, next(self._blocks(batch)))
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
        numbers = [group.numbers() for group in self.groups]
        if between is not None:
            between()
        if not self._guarded or all(bool(loss.isfinite().all()) for loss in losses):
            for group, total, h in zip(self.groups, self.sums, numbers, strict=True):
                gradient = self._clipped(group, total.sum)
                group.rule.update(group.vector, gradient, group.moments, h, group.options)
        return losses

    def add_up(
        self, batch: list[Tensor], replayed_at: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Leave the gradient of a batch in the sums; the losses, flat.

        Args:
            replayed_at: parameters to take in place of one's own, all without compiled code.
        """
        losses: list[Tensor] = []
        for total in self.sums:
            total.sum.zero_()
        for block in self._blocks(batch):
            weight = len(block[0]) / len(batch[0])
            for total in self.sums:
                total.weight = weight
            if replayed_at is None and len(block[0]) == self._size:
                found = self._inner.take(block)
            else:
                found = self._replay(block, replayed_at or self._parameters)
            scaled = [weight * loss for loss in found]
            losses = [a + b for a, b in zip(losses, scaled, strict=True)] if losses else scaled
        return losses

    def _replay(self, block: list[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
        """Add a block's gradient to the sums without compiled code."""
        whole = len(block[0]) == self._size or self._rest is None
        recording = self._block if whole else self._rest
        assert recording is not None
        losses, gradients = _evaluate(recording, parameters, block)
        given = dict(zip(map(id, self._parameters), gradients, strict=True))
        for total in self.sums:
            total.sum.add_(_flat(total, given), alpha=total.weight)
        return losses

    def take_back(self) -> None:
        """Do not count the last step: it was guarded and has changed nothing else."""
        for group in self.groups:
            group.take_back()

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
        return self._inner.inputs(next(self._blocks(batch)))

    def compile(self, batch: list[Tensor], same_random: bool) -> None:
        """Make machine code of a block's part, see `CompiledStep.compile`."""
        self._inner.compile(next(self._blocks(batch)), same_random)

    def _blocks(self, batch: list[Tensor]) -> Iterator[list[Tensor]]:
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

    def numbers(self) -> list[float]:
        return [self.weight]


def _add(p: Tensor, g: Tensor, moments: list[Tensor], h: Numbers, o: dict[str, Any]) -> None:
    moments[0].add_(g * h[0])


@torch.no_grad()
def in_blocks(
    block: Block,
    gradient: Gradient,
    arguments: Arguments,
    recording: Recording,
    groups: list[FlatGroup],
    clip: Clip | None,
    guarded: bool,
) -> BlockedStep | None:
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
    if made is None or not any(_is_whole(made, gradient, batch, aside) for aside in ASIDE):
        return None
    return made


def block_size(rows: int, largest: int) -> int | None:
    """Rows of a block where the largest table of `rows` has so many bytes; None for one block."""
    most = _BYTES * rows // max(largest, 1)
    if rows < _ROWS or rows < _BLOCKS * most or most < 1:
        return None
    even = [size for size in range(most, most // 2, -1) if rows % size == 0]
    return even[0] if even else most


def _made(
    block: Block,
    gradient: Gradient,
    arguments: Arguments,
    recording: Recording,
    groups: list[FlatGroup],
    clip: Clip | None,
    guarded: bool,
    size: int,
) -> BlockedStep | None:
    batch = arguments.tensors
    rows = len(batch[0])
    of_block = Gradient(
        partial(block, rows), gradient.parameters, strict=True, watched=gradient.watched
    )
    recordings = []
    for count in (size, rows % size):
        if count == 0:
            continue
        part = tuple(tensor[:count] for tensor in batch)
        try:
            with torch.enable_grad():
                of_block.rehearse(part, {}, Snapshot(gradient.watched))
        except CannotCaptureError:
            return None
        found = of_block.lookup(part, {})[1]
        if found is None or found.mutated or found.active != recording.active:
            return None
        recordings.append(found)
    first, *rest = recordings
    return BlockedStep(
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


def _is_whole(made: BlockedStep, gradient: Gradient, batch: list[Tensor], aside: float) -> bool:
    """Whether blocks give the first loss and the gradient of the whole, to rounding.

    Args:
        aside: how far from the parameters, by their size.
    """
    at = [
        p.detach() + aside * (1 + p.detach().abs()) * torch.arange(p.numel()).sin().view(p.shape)
        for p in gradient.parameters
    ]
    at = [moved.to(p.dtype) for moved, p in zip(at, gradient.parameters, strict=True)]
    losses, wanted = _evaluate(made.recording, at, batch)
    given = dict(zip(map(id, gradient.parameters), wanted, strict=True))
    found = made.add_up(batch, at)
    return close(found[0], losses[0]) and all(
        close(total.sum, _flat(total, given)) for total in made.sums
    )


def _evaluate(
    recording: Recording, parameters: Sequence[Tensor], batch: list[Tensor]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """The losses, and a gradient for each parameter, None where it has none."""
    out = recording.module(*parameters, *batch, *recording.sources, *recording.constants)
    gradients = iter(out[recording.num_losses :])
    return list(out[: recording.num_losses]), [
        next(gradients) if active else None for active in recording.active
    ]


def _flat(total: _Sum, gradients: dict[int, Tensor | None]) -> Tensor:
    pieces = [gradients[id(p)] for p in total.parameters]
    return torch.cat([piece.reshape(-1) for piece in pieces if piece is not None])
