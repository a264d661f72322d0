"""Gradient of the bound in nats per row, clipped.

On B of N rows the gradient is

    1/N ∇ [ global terms + N/B Σ_b local terms of row b ],

so that learning rates and gradient norms mean the same for every N. Scale, norm, clipping and the
test for finite values are tensor operations on `.grad`; they are captured with the programs.
Each of several processes has its part of the B rows, and one all-reduce adds the parts.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.compiler.row_tiling import RowBlocks
from ppl_lvm.core import distributed
from ppl_lvm.particles.plate_dependence import sums_over_rows
from ppl_lvm.training.preparation import PreparedPrograms


class GradientStep:
    """Loss and gradient of a batch: the part of a step that is captured.

    Attributes:
        failure: error of the programs in this one of several processes. Its loss is then NaN, and
            so is that of the others, which would wait for it otherwise.

    Args:
        clip_norm: largest Euclidean norm of the gradient, nats per row; None does not clip.
    """

    def __init__(self, programs: PreparedPrograms, clip_norm: float | None) -> None:
        self.programs, self._clip_norm = programs, clip_norm
        self._leaves = list(programs.pair.unconstrained_parameters.values())
        if not self._leaves:
            raise ValueError("Neither the model nor the guide has a parameter to train.")
        self._share = torch.ones(())  # of this process in the batch
        self.failure: ValueError | None = None

    @property
    def leaves(self) -> list[Tensor]:
        """The unconstrained parameters."""
        return self._leaves

    @property
    def blocks(self) -> RowBlocks | None:
        """The loss on blocks of rows; None where the gradients of blocks do not add up."""
        programs = self.programs
        if not programs.scales_rows or self._clip_norm is not None or distributed.world_size() > 1:
            return None
        # The scale N/B of a block estimates the sum over all N rows, like that of a batch.
        return RowBlocks(
            run=lambda rows, *block: self.loss_and_gradient(*block),
            sums_over_rows=partial(sums_over_rows, programs.model, programs.guide),
        )

    def set_batch_size(self, rows: int) -> None:
        """Set the size of the whole batch, of which this process has a part."""
        if distributed.world_size() > 1:
            self._share.fill_(distributed.local_weight(rows))

    def loss_and_gradient(self, *batch: Tensor) -> tuple[Any, Tensor]:
        """Leave the gradient in nats per row in `.grad`.

        Returns the objective's loss and the gradient's largest entry before clipping. The entry is
        NaN where an observed value is outside the support of its distribution.
        """
        programs, per_row = self.programs, self.programs.per_row(len(batch[0]))
        programs.support.clear()
        enabled = torch.is_grad_enabled()
        loss = self._run_objective(batch) if distributed.world_size() == 1 else self._try(batch)
        with torch.no_grad():
            leaves = self._leaves_with_gradient()
            if not leaves and not enabled:
                raise ValueError(
                    "Training: gradients are disabled (torch.no_grad or torch.inference_mode). "
                    "Call fit outside of it."
                )
            if not leaves:
                names = [n.split("/", 1)[1] for n in programs.pair.unconstrained_parameters]
                raise ValueError(
                    "No parameter received a gradient: none of "
                    f"{', '.join(names)} reaches the bound."
                )
            # New tensors: a compiled loop over steps cannot hold changes of lists in place.
            raw: Any = [leaf.grad for leaf in leaves]
            gradients = list(torch._foreach_mul(raw, per_row))
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient
            supported = programs.support.all()
            if distributed.world_size() > 1:
                loss = self._all_reduce(loss, gradients, per_row, supported)
            largest = _stack(torch._foreach_norm(gradients, math.inf)).max()
            self._clip(gradients)
            if supported is not None:
                largest = torch.where(supported, largest, math.nan)
        return loss, largest

    def _leaves_with_gradient(self) -> list[Tensor]:
        """The leaves that took part; of several processes all leaves, as one may have failed."""
        leaves = [leaf for leaf in self._leaves if leaf.grad is not None]
        if not leaves or distributed.world_size() == 1:
            return leaves
        for leaf in self._leaves:
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        return list(self._leaves)

    def leave_raw_gradient(self, batch: tuple[Tensor, ...]) -> None:
        """Leave the objective's own gradient in `.grad`, to locate a value that is not finite."""
        self.clear()
        self._run_objective(batch)

    def clear(self) -> None:
        """Remove the gradients."""
        for leaf in self._leaves:
            leaf.grad = None

    def _run_objective(self, batch: tuple[Tensor, ...]) -> Any:
        programs = self.programs
        return programs.pair.objective.loss_and_grads(programs.model, programs.guide, *batch)

    def _try(self, batch: tuple[Tensor, ...]) -> Any:
        """The loss in one of several processes; NaN, and gradients of 0, where it fails."""
        self.failure = None
        try:
            return self._run_objective(batch)
        except ValueError as failure:
            self.failure = failure
            for leaf in self._leaves:
                leaf.grad = torch.zeros_like(leaf)
            return math.nan

    def _all_reduce(
        self, loss: Any, gradients: list[Tensor], per_row: float, supported: Tensor | None
    ) -> Tensor:
        """Weighted sums over processes of all gradients and of the loss, in nats per row.

        The loss is NaN in all processes if values are not supported in one.
        """
        loss = torch.as_tensor(loss).detach().to(gradients[0]) * per_row
        if supported is not None:
            loss = torch.where(supported, loss, math.nan)
        pieces = [g.to(gradients[0].dtype).reshape(-1) for g in gradients]
        flat = torch.cat([*pieces, loss.reshape(1)]) * self._share.to(gradients[0])
        total = distributed.all_reduce_sum(flat)
        *parts, loss = total.split([*(len(piece) for piece in pieces), 1])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))
        return loss.reshape(())

    def _clip(self, gradients: list[Tensor]) -> None:
        if self._clip_norm is not None:
            # Double precision: the square of a large gradient overflows float32.
            norms = torch._foreach_norm([g.double() for g in gradients])
            factor = self._clip_norm / (torch.stack(list(norms)).norm() + 1e-12)
            for gradient in gradients:
                gradient.mul_(factor.clamp(max=1.0).to(gradient.dtype))


def _stack(norms: Any) -> Tensor:
    """Scalars as one vector, in double precision where their types differ."""
    dtypes = {norm.dtype for norm in norms}
    return torch.stack([n if len(dtypes) == 1 else n.double() for n in norms])
