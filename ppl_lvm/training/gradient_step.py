"""One step: the gradient of the bound in nats per row, clipped, and the optimiser's update.

A step on B of N rows follows

    1/N ∇ [ global terms + N/B Σ_b local terms of datum b ],

so that learning rates and gradient norms mean the same for every N. Scale, norm, clipping and the
question whether all is finite are tensor operations on `.grad`: the engine captures them with the
program. Of several processes each has its part of the B rows; one all-reduce adds up.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ppl_lvm.compiler import (
    AheadOfTimePolicy,
    NonFiniteStepError,
    PerStepTensor,
    make_training_step,
)
from ppl_lvm.core import distributed as processes
from ppl_lvm.core import torch_specs
from ppl_lvm.core.rng import restore_generators
from ppl_lvm.estimators import objectives
from ppl_lvm.programs.minibatch import ScaleDataPlate
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.training.kl_weight import KLWeight, refuse_summed_parents
from ppl_lvm.training.options import TrainingOptions
from ppl_lvm.training.support_check import SupportCheck


class GradientStep:
    """Steps of `pair`, at the engine's level.

    Attributes:
        optimizer, schedule: torch's; the schedule is None, or steps after every step (a
            ReduceLROnPlateau where it is told).
        sign: an upper bound is what its objective descends; any other is what it ascends.

    Args:
        pair: the programs; prepared.
        num_rows: N.
        example: a batch, rows first.
        options: what was asked.
        summed: sites summed out of the model.
        say: receives one-line messages.
    """

    def __init__(
        self,
        pair: ModelGuidePair,
        num_rows: int,
        example: tuple[Tensor, ...],
        options: TrainingOptions,
        summed: frozenset[str],
        say: Callable[[str], None],
    ) -> None:
        self.pair, self._num_rows, self._options = pair, num_rows, options
        self.sign = 1.0 if getattr(pair.objective, "is_upper_bound", False) else -1.0
        self._kl = KLWeight(summed)
        self._support = SupportCheck()
        if options.kl_weight != 1.0 or options.kl_annealing:
            refuse_summed_parents(pair, summed, *example)
        self._wrap(options)
        # Before anything is loaded from a checkpoint: a resumed run must not do it once more.
        pair.initialize_objective(self._model, self._guide, *example)
        self._leaves = list(pair.unconstrained_parameters.values())
        if not self._leaves:
            raise ValueError("Neither the model nor the guide has a parameter to train.")
        devices = {tensor.device for tensor in (*self._leaves, *example)}
        if len(devices) == 1:  # beside the rest: a CUDA graph reads no number of the processor's
            self._kl.value = self._kl.value.to(devices.pop())
        self.optimizer = torch_specs.optimizer(options.optimizer, self._leaves)
        self.schedule = torch_specs.schedule(options.schedule, self.optimizer)
        self._share = torch.ones(())  # of this process in the batch
        self._kept: dict[str, Tensor] | None = None
        alone = processes.count() == 1  # others would wait for the compiler of one
        self.plan = AheadOfTimePolicy(
            options.num_steps if alone else 0, num_rows, options.batch_size
        )
        self.whole = make_training_step(
            self._loss_and_gradient,
            self.optimizer,
            "eager" if isinstance(self.optimizer, LBFGS) else options.engine,
            watched=(pair.model, pair.guide, pair.objective),
            announce=say,
            finite=True,
            capture_first=True,
            plan=self.plan,
            block=self._of_block if self._adds_up(options) else None,
        )

    def _wrap(self, options: TrainingOptions) -> None:
        """Wrapped once: objectives may remember what they found out about a program."""
        self._model, self._guide = self.pair.model, self.pair.guide
        if options.engine != "eager":  # where the program always runs, Pyro itself looks
            self._model = self._support(self._model)
        if options.kl_weight != 1.0 or options.kl_annealing:
            self._model, self._guide = self._kl(self._model), self._kl(self._guide)
        self._scale_after = objectives.scales_inside(self.pair.objective)
        if not self._scale_after:
            scale = ScaleDataPlate(self._num_rows)
            self._model, self._guide = scale(self._model), scale(self._guide)

    def _adds_up(self, options: TrainingOptions) -> bool:
        """Whether the gradients of blocks of a batch may simply be added."""
        alone = processes.count() == 1
        return alone and not self._scale_after and options.clip_norm is None

    def programs(self, rows: int) -> tuple[Callable[..., Any], Callable[..., Any], float]:
        """Model and guide as the objective sees them, and what makes its loss nats per row."""
        return self._model, self._guide, 1.0 / (rows if self._scale_after else self._num_rows)

    @property
    def level(self) -> str:
        """The level at which steps are taken: "eager", "captured" or "compiled"."""
        return self.whole.active_level

    @property
    def learning(self) -> bool:
        """Whether the program will run before a step is replayed."""
        gradient = self.whole.gradient
        if self.whole.level == "eager" or gradient.capture_error is not None:
            return False
        return gradient.num_captures == 0

    @property
    def capture_error(self) -> str | None:
        """Why steps are eager, where they were to be captured and could not be."""
        refusal = self.whole.gradient.capture_error
        return None if refusal is None else str(refusal)

    def go_eagerly(self, refusal: str) -> None:
        """Do not try to capture: it is known why it cannot be."""
        self.whole.gradient.disable_capture(refusal)

    def set_kl_weight(self, value: float) -> None:
        """β from here on."""
        self._kl.value.fill_(value)

    @property
    def kl_weight(self) -> Tensor:
        """β, as the programs read it."""
        return self._kl.value

    # Steps

    def step(self, batch: tuple[Tensor, ...], rows: int, before: list[Tensor]) -> float:
        """Take one step on `batch`, this process's part of `rows` rows; the bound, nats per row.

        Args:
            before: torch's random states, to which a line search returns.

        Raises:
            NonFiniteStepError: the loss or a gradient is not finite; parameters are as before.
        """
        if processes.count() > 1:
            self._share.fill_(processes.weight(rows))
        if isinstance(self.optimizer, LBFGS):
            loss = self._search(batch, before)
        else:
            loss, _ = self.whole(*batch)
        self.after()
        return self.sign * float(loss) * self._per_row(batch)

    def run_steps(
        self,
        data: tuple[Tensor, ...],
        rows: Tensor | None,
        weights: Sequence[float],
    ) -> list[float] | None:
        """One step for each of the KL `weights`, in one call: the bounds, nats per row.

        Args:
            data: tensors, rows first.
            rows: (steps, B) of them, or None: every step sees all.

        Returns:
            None where these steps cannot be had in one call, or where one of them is not finite:
            then nothing has changed.
        """
        count = len(weights)
        turns = [PerStepTensor(self._kl.value, self._kl.value.new_tensor(weights))]
        rates = self._rates()
        try:
            losses = self.whole.run_steps(
                list(data), rows, count, turns=turns, after_each=self.after
            )
        except NonFiniteStepError:
            self._set_rates(rates)
            return None
        if losses is None:
            return None
        loss, _ = losses
        self.set_kl_weight(weights[-1])
        batch = data if rows is None else tuple(tensor[rows[0]] for tensor in data)
        per_row = self._per_row(batch)
        return [self.sign * value * per_row for value in loss.tolist()]

    def _per_row(self, batch: tuple[Tensor, ...]) -> float:
        # Of several processes the losses come weighted and in nats per row already.
        return 1.0 if processes.count() > 1 else self.programs(len(batch[0]))[2]

    def after(self) -> None:
        """The schedule's step."""
        if self.schedule is not None and not isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step()

    def _rates(self) -> tuple[list[dict[str, Any]], Any]:
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self._groups()]
        return groups, None if self.schedule is None else dict(self.schedule.state_dict())

    def _set_rates(self, rates: tuple[list[dict[str, Any]], Any]) -> None:
        for group, values in zip(self._groups(), rates[0], strict=True):
            group.update(values)
        if self.schedule is not None:
            self.schedule.load_state_dict(rates[1])

    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def _search(self, batch: tuple[Tensor, ...], before: list[Tensor]) -> float:
        """A step of L-BFGS, which moves the parameters several times before a fault can show."""
        self._kept = self.pair.state()

        def closure() -> float:
            restore_generators(before)  # the line search compares like with like
            for leaf in self._leaves:
                leaf.grad = None
            loss, largest = self._loss_and_gradient(*batch)
            if not (math.isfinite(loss) and torch.isfinite(largest)):
                raise NonFiniteStepError("loss or gradient is not finite")
            return float(loss) * self._per_row(batch)

        loss: Any = self.optimizer.step(closure)
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss) / self._per_row(batch)

    def look(self, batch: tuple[Tensor, ...]) -> None:
        """Leave in `.grad` what the program gives on a batch, not clipped: to see what is wrong."""
        for leaf in self._leaves:
            leaf.grad = None
        model, guide, _ = self.programs(len(batch[0]))
        self.pair.objective.loss_and_grads(model, guide, *batch)

    def undo(self) -> None:
        """Go back to the parameters from which a line search that failed began."""
        if self._kept is not None:
            self.pair.load_state(self._kept)

    # What is captured

    def _loss_and_gradient(self, *batch: Tensor) -> tuple[Any, Tensor]:
        """Leave the gradient in nats per row in `.grad`.

        Returns the objective's loss, and the gradient's largest entry before clipping, NaN where
        an observed value is outside the support of its distribution.
        """
        model, guide, per_row = self.programs(len(batch[0]))
        self._support.clear()
        loss: Any = self.pair.objective.loss_and_grads(model, guide, *batch)
        with torch.no_grad():
            used = [leaf for leaf in self._leaves if leaf.grad is not None]
            if not used:
                names = [n.split("/", 1)[1] for n in self.pair.unconstrained_parameters]
                raise ValueError(
                    "No parameter received a gradient: none of "
                    f"{', '.join(names)} reaches the bound."
                )
            # A loop over steps cannot hold changes of lists in place: new tensors instead.
            raw: Any = [leaf.grad for leaf in used]
            gradients = list(torch._foreach_mul(raw, per_row))
            for leaf, gradient in zip(used, gradients, strict=True):
                leaf.grad = gradient
            if processes.count() > 1:
                loss = self._all_reduce(loss, gradients, per_row)
            largest = _one(torch._foreach_norm(gradients, math.inf)).max()
            self._clip(gradients)
            supported = self._support.all()
            if supported is not None:
                largest = torch.where(supported, largest, math.nan)
        return loss, largest

    def _of_block(self, rows: int, *block: Tensor) -> tuple[Any, Tensor]:
        """The same for a block of a batch: every batch stands for all of the data already."""
        return self._loss_and_gradient(*block)

    def _all_reduce(self, loss: Any, gradients: list[Tensor], per_row: float) -> Tensor:
        """Weighted sums over processes of all gradients and of the loss, in nats per row."""
        loss = torch.as_tensor(loss).detach().to(gradients[0]) * per_row
        pieces = [g.to(gradients[0].dtype).reshape(-1) for g in gradients]
        flat = torch.cat([*pieces, loss.reshape(1)]) * self._share.to(gradients[0])
        total = processes.summed(flat)
        *parts, loss = total.split([*(len(piece) for piece in pieces), 1])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))
        return loss.reshape(())

    def _clip(self, gradients: list[Tensor]) -> None:
        if self._options.clip_norm is not None:
            # In double precision, for the square of a large gradient is no float32.
            norms = torch._foreach_norm([g.double() for g in gradients])
            factor = self._options.clip_norm / (torch.stack(list(norms)).norm() + 1e-12)
            for gradient in gradients:
                gradient.mul_(factor.clamp(max=1.0).to(gradient.dtype))


def _one(norms: Any) -> Tensor:
    """Numbers side by side, in one type."""
    dtypes = {norm.dtype for norm in norms}
    return torch.stack([n if len(dtypes) == 1 else n.double() for n in norms])
