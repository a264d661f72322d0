"""Options of the four fits, with their help texts.

Each option is declared once, as a field of a dataclass. `training.option_signatures` makes the
signature and the docstring of a function such as `fit` from these fields, and
`ppl_lvm.cli.fit_command` makes the options of `ppl-lvm fit`. This module does not import torch, so
that the command line starts fast.
"""

# ruff: noqa: RUF009  (`option` returns a field of the dataclass)

import math
from collections.abc import Callable
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt, Le

from ppl_lvm.core.levels import Level, Method
from ppl_lvm.core.validate import (
    CallSyntax,
    Count,
    DataSource,
    NonNegative,
    Objective,
    Positive,
    ProgramSource,
    Seconds,
    Seed,
    Share,
    Whole,
)

Validation = Whole | Share | DataSource | None
DEFAULT_STEPS, FIXED_STEPS = 10_000, 2000  # with and without an accuracy
DEFAULT_ACCURACY = 0.002  # nats per row
BRACKETS = "brackets"  # on the command line: --objective 'em(decay=0.6)'
PYTHON_ONLY = "python"


def option(
    default: Any,
    help: str,
    *,
    flag: str = "",
    type: Any = None,
    recorded: bool = True,
    free: bool = False,
) -> Any:
    """A field that is an option.

    Args:
        help: text for the docstring and for `--help`.
        flag: name on the command line if it differs; `BRACKETS` or `PYTHON_ONLY`.
        type: type on the command line, if the annotation allows more.
        recorded: False leaves it out of the options in run.json.
        free: the option does not change the result, so it may differ when a run is resumed.
    """
    metadata = {"help": help, "flag": flag, "type": type, "recorded": recorded, "free": free}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Options that both a fit and its training loop read."""

    seed: Seed = option(0, "Seed of every random number; equal seeds give equal runs.")
    checkpoint_seconds: Seconds = option(
        10.0, "Shortest time between two checkpoints, in seconds.", recorded=False, free=True
    )

    log: Callable[[dict[str, Any]], Any] | None = option(
        None,
        "A function that receives a dictionary of numbers at every evaluation (EM: iteration): "
        "step, bound, seconds, and validation_bound, learning_rate and predicted_gain where they "
        "are known; see `ppl_lvm.loggers`.",
        flag=PYTHON_ONLY,
        recorded=False,
        free=True,
    )


@dataclass(frozen=True, kw_only=True)
class SessionOptions(CommonOptions):
    """Options of every fit."""

    validation: Validation = option(
        None,
        "Rows held out: their number, a share below 1, or a data set.",
        type=float,
        recorded=False,
    )
    weights: Any = option(
        None,
        "Weights of the rows, an array (N,), or a column of the file by name: a weight of 2 counts "
        "as two equal rows.",
        type=str,
        recorded=False,
    )
    exposure: Any = option(
        None,
        "Exposures of the rows, an array (N,), or a column of the file by name: model(x, exposure) "
        "multiplies the rates of counts by them.",
        type=str,
        recorded=False,
    )
    settings: dict[str, Any] | None = option(
        None, "Arguments of a model given as a class or an address.", recorded=False
    )
    directory: str | Path | None = option(
        None,
        "Directory that keeps the run (default: none; of the command: runs/MODEL-DATA-1, …).",
        type=Path,
        recorded=False,
    )
    resume: bool = option(False, "Continue the run in the directory.", recorded=False)


@dataclass(frozen=True, kw_only=True)
class GradientOptions(CommonOptions):
    """Options of gradient steps."""

    optimizer: CallSyntax = option(
        "Adam(lr=0.01)",
        "A torch optimizer in call syntax, or a callable of the parameters. It sees the gradient "
        "of the loss in nats per row.",
        type=str,
    )
    schedule: CallSyntax | None = option(
        None,
        "A torch learning-rate schedule in call syntax, 'CosineAnnealingLR(T_max=1000)', or a "
        "callable of the optimizer; stepped every step (ReduceLROnPlateau: every evaluation).",
        type=str,
    )
    clip_norm: Positive | None = option(None, "Largest norm of the gradient, nats per row.")
    kl_weight: Annotated[NonNegative, Le(1e30)] = option(1.0, "Weight β of the KL term.")
    kl_annealing: Whole = option(0, "Steps over which the weight grows linearly from 0 to β.")
    patience: Count | None = option(
        None,
        "Stop after so many evaluations without a better validation bound, and restore the best "
        "parameters.",
    )
    engine: Level = option(
        "auto",
        "How steps are taken: eager (run the program), captured (replay its tensor operations), "
        "compiled, or auto (the fastest that pays). All levels are equal up to rounding.",
        free=True,
    )
    steps_per_call: Count | None = option(
        None,
        "Steps that a compiled call takes at most; progress is shown between calls (default: those "
        "of a fifth of a second).",
        free=True,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(GradientOptions):
    """Options of one training, with the number of steps and the batch size settled."""

    num_steps: int
    batch_size: int
    validate_every: int = 100
    accuracy: float = 0.0

    @property
    def foreseen_steps(self) -> int:
        """Steps to plan for: a run with an accuracy may end long before its limit."""
        return min(self.num_steps, FIXED_STEPS) if self.accuracy else self.num_steps


@dataclass(frozen=True, kw_only=True)
class FitOptions(GradientOptions, SessionOptions):
    """Options of `fit`."""

    method: Method = option(
        "auto",
        "How the posterior is found: svi (gradient steps of the guide's parameters), or without "
        "steps, for models of global continuous latents without parameters and guide=None, "
        "laplace, pathfinder, batch_and_match, dadvi, or all of these with chains that test them "
        "(the choice of auto for such models).",
    )
    objective: Objective | None = option(
        None,
        "A pyro.infer.ELBO or its name in call syntax, 'IWAE(num_particles=5)' (default: the ELBO; "
        "discrete sites that the guide leaves out are summed out).",
    )
    accuracy: NonNegative = option(
        DEFAULT_ACCURACY,
        "Lower the learning rate, and stop, when the gain that more steps are predicted to bring "
        "is smaller, nats per row. 0 takes all steps at one rate. A schedule and patience "
        "decide instead of it.",
    )
    num_steps: Count | None = option(
        None,
        f"Largest number of updates (default: {DEFAULT_STEPS:,}; {FIXED_STEPS:,} without "
        "accuracy).",
    )
    num_epochs: Count | None = option(
        None, "Largest number of passes over the data, in place of num_steps."
    )
    batch_size: Count | None = option(
        None, "Rows of a step (default: all, or those of the DataLoader; 1,024 of rows on disk)."
    )
    validate_every: Count | None = option(
        None, "Steps between two evaluations (default: an epoch, at least 100)."
    )
    restarts: Count = option(
        1,
        "Independent restarts with seeds seed, seed + 1, …; the best that is not degenerate is "
        "chosen.",
    )
    guide_settings: dict[str, Any] | None = option(
        None, "Arguments of a guide given as a class or an address."
    )
    progress: bool = option(True, "Show a progress bar.", flag=PYTHON_ONLY)

    def settle(self, num_rows: int, batch_size: int | None) -> TrainingOptions:
        """Options of the training of `num_rows` rows.

        Args:
            num_rows: N.
            batch_size: of the data, if they have one.

        Raises:
            ValueError: an option is out of range.
        """
        size = (batch_size or num_rows) if self.batch_size is None else self.batch_size
        size = min(size, num_rows)
        if self.num_steps is not None and self.num_epochs is not None:
            raise ValueError("Give num_steps or num_epochs, not both.")
        per_epoch = math.ceil(num_rows / size)
        adapts = self.schedule is None and self.patience is None
        accuracy = self.accuracy if adapts else 0.0
        default = DEFAULT_STEPS if accuracy else FIXED_STEPS
        steps = default if self.num_steps is None else self.num_steps
        if self.num_epochs is not None:
            steps = self.num_epochs * per_epoch
        if self.kl_annealing > steps:
            raise ValueError(
                f"kl_annealing: {self.kl_annealing} steps are more than the {steps} of the run, so "
                f"that the weight stays below kl_weight. Pass at most {steps}."
            )
        shared = {f.name: getattr(self, f.name) for f in declared(GradientOptions)}
        return TrainingOptions(
            **shared,
            num_steps=steps,
            batch_size=size,
            validate_every=self.validate_every or max(100, per_epoch),
            accuracy=accuracy,
        )


@dataclass(frozen=True, kw_only=True)
class EMOptions(SessionOptions):
    """Options of `fit_em`."""

    max_iterations: Count | None = option(
        None,
        "Largest number of passes over the data (default: 1,000; online EM: exactly 10).",
        flag="num_steps",
    )
    tolerance: NonNegative = option(
        1e-6,
        "Stop when the estimated remaining gain is smaller, nats per row. Online EM does not stop "
        "early.",
        flag=BRACKETS,
    )
    batch_size: Count | None = option(
        None,
        "Rows read at once, without effect on the result (default: 65,536); online EM: rows of a "
        "step (default: 256).",
    )
    decay: Annotated[float, Gt(0.5), Le(1)] | None = option(
        None,
        "None: every iteration reads all rows. A number: online EM with step sizes "
        "(1 + t)^-decay, ½ < decay ≤ 1, such as 0.6, for data so large that a few passes must do.",
        flag=BRACKETS,
    )
    restarts: Count = option(
        1,
        "Restarts with seeds seed, seed + 1, …, iterated together, from initial values of several "
        "kinds if the model has them; the most likely that is not degenerate is chosen. A model "
        "without `initialize` has one.",
        recorded=False,
    )
    guide: ProgramSource | None = option(
        None,
        "Guide of the run (default: the exact posterior if the model has one, else as in `fit`).",
        flag=PYTHON_ONLY,
        recorded=False,
    )


@dataclass(frozen=True, kw_only=True)
class MonteCarloEMOptions(SessionOptions):
    """Options of `fit_mcem`."""

    max_iterations: Count = option(
        40, "T. The result is the mean over the second half of them.", flag="num_steps"
    )
    num_draws: Count = option(20, "S, draws of the chain in an iteration.", flag=BRACKETS)
    warmup: Count = option(50, "Steps of the chain in each adaptation.", flag=BRACKETS)
    guide: ProgramSource | None = option(
        None,
        "Guide of the run (default: the exact posterior if the model has one, else as in `fit`).",
        recorded=False,
    )
    guide_steps: Count = option(1000, "Steps of the guide's training.", flag=BRACKETS)
    guide_settings: dict[str, Any] | None = option(
        None, "Arguments of a guide given as a class or an address.", recorded=False
    )
    progress: bool = option(True, "Show a progress bar.", flag=PYTHON_ONLY, recorded=False)


@dataclass(frozen=True, kw_only=True)
class AdversarialOptions(SessionOptions):
    """Options of `fit_adversarial`."""

    objective: CallSyntax = option(
        "non_saturating",
        "f: minimax, non_saturating or maximum_likelihood, or a function of a(x).",
        flag=BRACKETS,
    )
    discriminator: Callable[..., Any] | None = option(
        None,
        "A module (N, P) -> (N,) (default: a `Discriminator`).",
        flag=PYTHON_ONLY,
        recorded=False,
    )
    num_steps: Count = option(2000, "Updates of the generator.")
    batch_size: Count = option(256, "Rows of data, and draws, of each update.")
    discriminator_steps: Count = option(
        2, "Updates of the discriminator before each of the generator.", flag=BRACKETS
    )
    penalty: NonNegative = option(
        0.003,
        "γ of γ/2 E_D ‖∇a(x)‖², added to the discriminator's loss, in the units of x. With 0 its "
        "optimum is the log density ratio, and training may circle; with γ > 0 it is a flatter "
        "function.",
        flag=BRACKETS,
    )
    optimizer: CallSyntax = option(
        "Adam(lr=0.002, betas=(0.5, 0.9))", "Optimizer of both, as in `fit`.", type=str
    )
    progress: bool = option(True, "Show a progress bar.", flag=PYTHON_ONLY, recorded=False)


def declared(options: type[CommonOptions]) -> list[Field[Any]]:
    """Fields of a class of options: its own first, then those of its bases."""
    fields = {f.name: f for f in options.__dataclass_fields__.values()}
    order = [name for base in options.__mro__ for name in vars(base).get("__annotations__", ())]
    return [fields[name] for name in dict.fromkeys(order)]
