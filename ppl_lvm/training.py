"""The training loop: batch -> gradient -> update, with its history and its checkpoints.

A step on B of N rows follows the gradient of the bound in nats per datum,

    1/N ∇ [ global terms + N/B Σ_b local terms of datum b ],

so that learning rates and gradient norms mean the same for every N. Which rows a step sees is a
function of the seed and the step alone; with the parameters, the optimiser's state and the random
generators' state in a checkpoint, a resumed run continues bit for bit.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.optim import LBFGS
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ppl_lvm import objectives
from ppl_lvm.checkpoint import (
    load_checkpoint,
    pack,
    random_state,
    save_checkpoint,
    set_random_state,
    unpack,
)
from ppl_lvm.data import Data
from ppl_lvm.engine import Level, make_step
from ppl_lvm.nonfinite import NonFiniteError, blame
from ppl_lvm.pair import Pair
from ppl_lvm.progress import Progress
from ppl_lvm.subsample import Subsample
from ppl_lvm.trail import Iterates


@dataclass(frozen=True)
class Options:
    """What was asked of the loop: plain data, recorded with the run.

    Attributes:
        num_steps: updates in all.
        batch_size: rows a step sees, B (the last batch of an epoch may be smaller).
        seed: of the rows' order and of every random number.
        optimizer, schedule: see `objectives.optimizer` and `objectives.schedule`.
        clip_norm: the gradient's Euclidean norm (nats per datum) is cut to this.
        kl_weight: β, the weight of latent sites' log-probabilities at the end of annealing.
        kl_annealing: steps over which that weight grows linearly from 0 to `kl_weight`.
        validate_every: steps between two evaluations of the validation bound.
        patience: evaluations without a better validation bound before the run stops early and
            goes back to the best parameters; None never stops.
        checkpoint_seconds: at least this long between two checkpoints (0: one every step).
        engine: "eager" runs the program at every step; "auto" and "captured" record its tensor
            operations and replay them, equal to rounding ("captured": or fail). A resumed run is
            equal bit for bit only where every step is eager.
    """

    num_steps: int
    batch_size: int
    seed: int = 0
    optimizer: Any = "Adam(lr=0.01)"
    schedule: Any = None
    clip_norm: float | None = None
    kl_weight: float = 1.0
    kl_annealing: int = 0
    validate_every: int = 100
    patience: int | None = None
    checkpoint_seconds: float = 10.0
    engine: Level = "eager"


class KLWeight(Messenger):
    """Scale latent sites of model and guide by `value`: β in E[log p(x|z)] - β KL(q ‖ p).

    Sites in `summed` (enumerated out of the model) have no KL term and are left alone.
    """

    def __init__(self, summed: frozenset[str]) -> None:
        super().__init__()
        self.value = torch.ones(())  # a tensor: a captured step reads it anew
        self.summed = summed

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] not in self.summed:
            msg["scale"] = msg["scale"] * self.value


class Training:
    """One run of the loop over `pair`; `run()` drives it, `step()` takes one step.

    Attributes:
        pair: the programs being trained.
        history: lists that grow with the run. "bound" has one value a step; "validation_step",
            "validation_bound" and "learning_rate" one an evaluation. Bounds are nats per datum.
        seconds: wall-clock time spent in steps, over all resumed parts.
    """

    def __init__(
        self,
        pair: Pair,
        train: Data,
        held_out: Data | None,
        options: Options,
        *,
        summed: frozenset[str] = frozenset(),
        path: Path | None = None,
    ) -> None:
        self.pair, self.train, self.held_out, self.options, self.path = (
            pair,
            train,
            held_out,
            options,
            path,
        )
        self.step_number = 0
        self.seconds = 0.0
        self.history: dict[str, list[float]] = {
            "bound": [],
            "validation_step": [],
            "validation_bound": [],
            "learning_rate": [],
        }
        self._kl = KLWeight(summed)
        # Wrapped once: objectives may remember what they found out about a program.
        self._model, self._guide = pair.model, pair.guide
        if options.kl_weight != 1.0 or options.kl_annealing:
            self._model, self._guide = self._kl(self._model), self._kl(self._guide)
        # An upper bound is what its objective descends; any other is what it ascends.
        self.sign = 1.0 if getattr(pair.objective, "upper", False) else -1.0
        self._scale_after = objectives.scales_inside(pair.objective)
        if not self._scale_after:
            scale = Subsample(len(train))
            self._model, self._guide = scale(self._model), scale(self._guide)
        # Before anything is loaded from a checkpoint: a resumed run must not do it once more.
        first = torch.arange(min(options.batch_size, len(train)))
        pair.introduce(self._model, self._guide, *train.batch(first))
        self._leaves = list(pair.leaves.values())
        if not self._leaves:
            raise ValueError("Neither the model nor the guide has a parameter to train.")
        self.optimizer = objectives.optimizer(options.optimizer, self._leaves)
        self.schedule = objectives.schedule(options.schedule, self.optimizer)
        self._loss_and_grads = make_step(
            lambda *batch: pair.objective.loss_and_grads(self._model, self._guide, *batch),
            self._leaves,
            "eager" if isinstance(self.optimizer, LBFGS) else options.engine,
            watched=(pair.model, pair.guide, pair.objective),
        )
        self.iterates = Iterates(pair.leaves, options.num_steps)
        self._order = RowOrder(len(train), options.batch_size, options.seed)
        self._whole: tuple[Tensor, ...] | None = None
        self._best_state: dict[str, Tensor] = {}
        self._best_bound = -math.inf
        self._waited = 0
        self._kept: dict[str, Tensor] | None = None

    # One step

    def step(self) -> float:
        """Take one step; returns its bound in nats per datum."""
        with self._ready():
            return self._step()

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The pair's own parameters, and no warning where an error will say more."""
        with self.pair.scope(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Encountered NaN", category=UserWarning)
            yield

    def _step(self) -> float:
        begun = time.perf_counter()
        rows = self._order.rows(self.step_number)
        batch = self._batch(rows)
        self._kl.value.fill_(self._kl_weight())
        before = torch.get_rng_state()
        try:
            # Pyro's own checks (shapes, supports) on everything once, then they cost nothing.
            with pyro.validation_enabled(self.step_number < self._order.steps_per_epoch):
                bound = self._update(batch, before)
        except (ValueError, NonFiniteError) as error:
            torch.set_rng_state(before)
            reason = blame(self.pair, self._programs(len(batch[0])), batch, rows, self.train)
            if reason is None:
                raise
            torch.set_rng_state(before)
            if self._kept is not None:
                self.pair.load_state(self._kept)
            if self.path is not None:
                self.save()
            raise NonFiniteError(
                f"Step {self.step_number + 1}: {reason} The parameters of step {self.step_number} "
                "are kept" + (f" in {self.path}." if self.path is not None else ".")
            ) from error
        self.history["bound"].append(bound)
        self.step_number += 1
        self.iterates.keep(self.step_number)
        self.seconds += time.perf_counter() - begun
        return bound

    def _update(self, batch: tuple[Tensor, ...], before: Tensor) -> float:
        if isinstance(self.optimizer, LBFGS):
            # Its step moves the parameters several times before a fault can show.
            self._kept = self.pair.state()

            def closure() -> float:
                torch.set_rng_state(before)  # the line search compares like with like
                return self.sign * self._gradient(batch)

            loss = self.optimizer.step(closure)
            bound = self.sign * float(loss)
        else:
            bound = self._gradient(batch)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.schedule is not None and not isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step()
        return bound

    def _gradient(self, batch: tuple[Tensor, ...]) -> float:
        """Leave the gradient of the loss in nats per datum in `.grad`; return the bound."""
        _, _, per_datum = self._programs(len(batch[0]))
        loss = float(self._loss_and_grads(*batch)) * per_datum
        gradients = [leaf.grad for leaf in self._leaves if leaf.grad is not None]
        torch._foreach_mul_(gradients, per_datum)
        if not gradients:
            raise ValueError(
                "No parameter received a gradient: none of "
                f"{', '.join(n.split('/', 1)[1] for n in self.pair.leaves)} reaches the bound."
            )
        largest = torch.stack(torch._foreach_norm(gradients, math.inf)).max()
        if not (math.isfinite(loss) and torch.isfinite(largest)):
            raise NonFiniteError("loss or gradient is not finite")
        if self.options.clip_norm is not None:
            # In double precision, for the square of a large gradient is no float32.
            norm = torch.nn.utils.get_total_norm([g.double() for g in gradients])
            torch._foreach_mul_(gradients, min(1.0, self.options.clip_norm / float(norm + 1e-12)))
        return self.sign * float(loss)

    def _programs(self, rows: int) -> tuple[Callable[..., Any], Callable[..., Any], float]:
        """Model and guide as the objective sees them, and what makes its loss nats per datum."""
        return self._model, self._guide, 1.0 / (rows if self._scale_after else len(self.train))

    def _kl_weight(self) -> float:
        done = (
            min(1.0, self.step_number / self.options.kl_annealing)
            if self.options.kl_annealing
            else 1
        )
        return self.options.kl_weight * done

    def _batch(self, rows: Tensor | None) -> tuple[Tensor, ...]:
        if rows is not None:
            return self.train.batch(rows)
        if self._whole is None:
            self._whole = self.train.batch(torch.arange(len(self.train)))
        return self._whole

    # Evaluation

    def evaluate(self, data: Data, *, repeats: int = 1) -> tuple[float, float]:
        """The bound on `data`, nats per datum, and its Monte-Carlo error (NaN for one repeat).

        At full KL weight, in evaluation mode, with a seed of its own: two evaluations of the same
        parameters are equal. Global latents count as in training: their terms are divided by the
        training rows.
        """
        self._kl.value.fill_(self.options.kl_weight)
        modules = [module for _, module in self.pair.modules()]
        training = [module.training for module in modules]
        try:
            with torch.no_grad(), torch.random.fork_rng(), self.pair.scope():
                torch.manual_seed(self.options.seed)
                self.pair.freeze()
                values = [self._evaluate_once(data) for _ in range(repeats)]
        finally:
            for module, mode in zip(modules, training, strict=True):
                module.train(mode)
        error = np.std(values, ddof=1) / math.sqrt(repeats) if repeats > 1 else math.nan
        return float(np.mean(values)), float(error)

    def _evaluate_once(self, data: Data) -> float:
        total = 0.0
        for rows in torch.arange(len(data)).split(self.options.batch_size):
            batch = data.batch(rows)
            model, guide, per_datum = self._programs(len(rows))
            loss = self.pair.objective.loss(model, guide, *batch) * per_datum
            total += self.sign * float(loss) * len(rows) / len(data)
        return total

    def _validate(self) -> bool:
        """Evaluate; whether to go on."""
        self.history["validation_step"].append(self.step_number)
        self.history["learning_rate"].append(float(self.optimizer.param_groups[0]["lr"]))
        if self.held_out is None:
            return True
        bound, _ = self.evaluate(self.held_out)
        self.history["validation_bound"].append(bound)
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(self.sign * bound)
        if -self.sign * bound > self._best_bound:
            self._best_bound, self._waited = -self.sign * bound, 0
            if self.options.patience is not None:
                self._best_state = self.pair.state()
        else:
            self._waited += 1
        return self.options.patience is None or self._waited <= self.options.patience

    # The loop

    def run(self, progress: Progress) -> None:
        """Step to the end, or until validation has stopped improving."""
        saved = time.monotonic()
        going = not self._stopped()
        with self._ready():
            while going and self.step_number < self.options.num_steps:
                bound = self._step()
                at_end = self.step_number == self.options.num_steps
                if at_end or self.step_number % self.options.validate_every == 0:
                    going = self._validate()
                progress.advance(self.step_number, bound, self.history["validation_bound"][-1:])
                due = time.monotonic() - saved >= self.options.checkpoint_seconds
                if self.path is not None and (due or at_end or not going):
                    self.save()
                    saved = time.monotonic()
        if self._best_state:
            self.pair.load_state(self._best_state)

    def _stopped(self) -> bool:
        return self.options.patience is not None and self._waited > self.options.patience

    # Checkpoints

    def save(self) -> None:
        """Write everything that the rest of the run depends on."""
        assert self.path is not None
        optimizer, tensors = pack("optimizer", self.optimizer.state_dict())
        schedule: Any = None
        if self.schedule is not None:
            schedule, more = pack("schedule", self.schedule.state_dict())
            tensors |= more
        for name, values in self.history.items():
            tensors[f"history/{name}"] = torch.tensor(values, dtype=torch.float64)
        tensors |= {f"best/{name}": tensor for name, tensor in self._best_state.items()}
        tensors |= {f"iterates/{name}": t for name, t in self.iterates.tensors().items()}
        save_checkpoint(
            self.path,
            {**self.pair.state(), **tensors, **random_state()},
            {
                "step": self.step_number,
                "seconds": self.seconds,
                "optimizer": optimizer,
                "schedule": schedule,
                "best_bound": self._best_bound,
                "waited": self._waited,
            },
        )

    def load(self) -> None:
        """Continue where `save` left off."""
        assert self.path is not None
        tensors, data = load_checkpoint(self.path)
        self.pair.load_state(tensors)
        self.optimizer.load_state_dict(unpack(data["optimizer"], tensors))
        if self.schedule is not None:
            self.schedule.load_state_dict(unpack(data["schedule"], tensors))
        self.history = {n: tensors[f"history/{n}"].tolist() for n in self.history}
        self._best_state = {
            name.removeprefix("best/"): t for name, t in tensors.items() if name.startswith("best/")
        }
        self.step_number, self.seconds = data["step"], data["seconds"]
        mine = "iterates/"
        kept = {n.removeprefix(mine): t for n, t in tensors.items() if n.startswith(mine)}
        self.iterates.load(kept, self.step_number)
        self._best_bound, self._waited = data["best_bound"], data["waited"]
        set_random_state(tensors)


class RowOrder:
    """Which rows a step sees: every epoch a new permutation, a function of seed and epoch alone.

    The last batch of an epoch holds what is left over. With B = N there is nothing to choose.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.steps_per_epoch = math.ceil(num_rows / batch_size)
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def rows(self, step: int) -> Tensor | None:
        """Row numbers (B,) of step `step`, counted from 0; None where it sees all of them."""
        if self.batch_size >= self.num_rows:
            return None
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            words = np.random.SeedSequence([self.seed, epoch]).generate_state(2)
            generator = torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
            self._permutation = torch.randperm(self.num_rows, generator=generator)
            self._epoch = epoch
        return self._permutation[position * self.batch_size : (position + 1) * self.batch_size]
