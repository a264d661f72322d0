"""Train a model that can only be drawn from, against a discriminator that tells it from data.

    found = fit_adversarial(Implicit(latent=2), x, objective=maximum_likelihood)
    found.generator.draw(100), found.two_sample(held_out)

Steps alternate: the discriminator's a(x) follows log p_D(x) - log p_G(x), the generator descends
the mean of f(a(G(z))), with f from `ppl_lvm.divergences.density_ratio`. There is no bound to
watch, and the two may circle each other; `penalty` damps that, and the two-sample test says
where it has led.

    game: the steps    adversaries: what they leave behind
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppl_lvm.core import distributed as processes
from ppl_lvm.core.console import Progress
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.torch_specs import describe
from ppl_lvm.data import Data, load_data
from ppl_lvm.data.selection import sample_rows, split_validation
from ppl_lvm.divergences import density_ratio
from ppl_lvm.divergences.density_ratio import Discriminator
from ppl_lvm.programs.pair import copy_programs
from ppl_lvm.programs.sources import ModelFactory
from ppl_lvm.runs.adversarial import Adversaries, load_adversaries
from ppl_lvm.runs.directory import open_run_directory
from ppl_lvm.runs.record import environment_record
from ppl_lvm.runs.run import TEMPLATE_ROWS
from ppl_lvm.training.adversarial import AdversarialOptions, Game
from ppl_lvm.training.iterate import iterate_with_checkpoints

__all__ = ["OBJECTIVES", "Adversaries", "fit_adversarial", "load_adversaries"]

OBJECTIVES = ("minimax", "non_saturating", "maximum_likelihood")
JUDGED_ROWS, FEWEST_ROWS = 2000, 20  # of the two-sample test: what it costs, what it needs


def fit_adversarial(
    generator: Any,
    data: Any,
    *,
    objective: str | Callable[[Tensor], Tensor] = "non_saturating",
    discriminator: nn.Module | None = None,
    num_steps: int = 2000,
    batch_size: int = 256,
    discriminator_steps: int = 2,
    penalty: float = 0.003,
    optimizer: Any = "Adam(lr=0.002, betas=(0.5, 0.9))",
    validation: Any = None,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    directory: str | Path | None = None,
    checkpoint_seconds: float = 10.0,
    resume: bool = False,
    progress: bool = True,
) -> Adversaries:
    """Train copies of a generator and a discriminator.

    Args:
        generator: a module with `draw(n)`, rows (n, P) with gradients; a class of such, or its
            address. `initialize(x)` is called where it has one.
        data: rows (N, P); see `load_data`.
        objective: f: `minimax`, `non_saturating` or `maximum_likelihood`, or a function of a.
        discriminator: a module (N, P) -> (N,); by default a `Discriminator`.
        num_steps: updates of the generator.
        batch_size: rows of data and draws of each update.
        discriminator_steps: its updates before each of the generator's.
        penalty: γ of γ/2 E_D ‖∇a(x)‖², added to the discriminator's loss, in the units of x. With
            0 its optimum is the log density ratio, and training may circle; with γ > 0 it is a
            flatter function.
        optimizer: of both, as `fit` takes it.
        validation: rows to hold out for the two-sample test (an int), a fraction of them, or data
            of its own; without, it judges on the training rows.
        seed: of every random number.
        settings: arguments for a generator given as a class or an address.
        directory: keep the run there.
        checkpoint_seconds: at least this long between two checkpoints.
        resume: continue the run in `directory` exactly where its last checkpoint stands.
        progress: show a bar, or plain lines where output is no terminal.

    Raises:
        ValueError: for data that are no rows, a generator that cannot be drawn from, or options
            out of range.
        FloatingPointError: a loss is not finite; names whose, and the step.
    """
    begun = time.perf_counter()
    rules = AdversarialOptions(num_steps, batch_size, discriminator_steps, penalty, optimizer)
    if processes.count() > 1:
        raise ValueError("Adversaries are trained in one process: start it without torchrun.")
    if directory is None and resume:
        raise ValueError("resume=True needs the directory of the run to continue.")
    f = _objective(objective)
    whole = data if isinstance(data, Data) else load_data(data)
    train, held_out = split_validation(whole, validation, seed)
    x = _rows(train)
    source = ModelFactory(
        generator if isinstance(generator, str) else copy_programs(generator)[0], settings
    )
    asked = _record(source, whole, train, held_out, validation, f, discriminator, rules, seed)
    path = None if directory is None else Path(directory)
    with preserve_rng():
        torch.manual_seed(seed)
        G: Any = source.make((x,))
        if not hasattr(G, "draw"):
            raise ValueError(
                f"{source.recipe.name} has no draw(n) that gives n rows with gradients. Write "
                "one, as models/implicit.py does; a model with a density is trained by fit."
            )
        a = Discriminator(x) if discriminator is None else copy_programs(discriminator)[0]
        _check_discriminator(a, x)
        show = Progress(num_steps, figure="Jensen-Shannon", shown=progress)
        game = Game(G, a, x, f, rules, show)
        finished = (
            None if path is None else open_run_directory(path, asked, resume, load_adversaries)
        )
        if finished is not None:
            return finished
        place = None if path is None else path / "checkpoint.safetensors"
        iterate_with_checkpoints(game, num_steps, place, checkpoint_seconds)
    found = Adversaries(G, a, game.history, asked, x[:TEMPLATE_ROWS], path)
    asked["results"] = _judged(found, train if held_out is None else held_out, begun)
    asked["results"]["two_sample_of"] = "training rows" if held_out is None else "held-out rows"
    if path is not None:
        from ppl_lvm.report.figures.adversarial import draw

        found.save(path)
        draw(found, _rows(held_out or train), path / "pictures")
    return found


def _objective(given: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    if not isinstance(given, str):
        return given
    if given not in OBJECTIVES:
        raise ValueError(f"There is no objective {given!r}; choose from {', '.join(OBJECTIVES)}.")
    found: Callable[[Tensor], Tensor] = getattr(density_ratio, given)
    return found


def _rows(data: Data) -> Tensor:
    """All rows (N, P)."""
    x, *more = data.batch(torch.arange(len(data)))
    if more or x.dim() != 2 or not x.is_floating_point() or not len(x):
        raise ValueError(
            f"fit_adversarial takes rows (N, P) of numbers, got {tuple(x.shape)}"
            + (f" and {len(more)} tensors beside them." if more else ".")
        )
    if (gaps := ~x.isfinite()).any():
        row, column = gaps.nonzero()[0].tolist()
        raise ValueError(
            f"fit_adversarial takes complete rows: {data.locate(row, column)} is missing "
            f"({int(gaps.sum())} such in all). What a generator draws has no gaps. Leave them out."
        )
    return x


def _check_discriminator(a: nn.Module, x: Tensor) -> None:
    """Refuse a discriminator that gives anything else than a number a row."""
    try:
        with torch.no_grad():
            found = tuple(a(x[:2]).shape)
    except RuntimeError as error:
        raise ValueError(
            f"The discriminator does not run on rows of shape {tuple(x.shape[1:])}: {error}"
        ) from error
    if found != (len(x[:2]),):
        raise ValueError(
            f"A discriminator gives one number a row, (N,) of rows (N, P); {type(a).__name__} "
            f"gives {found} of {tuple(x[:2].shape)}. End it with nn.Flatten(0)."
        )


def _record(
    source: ModelFactory,
    whole: Data,
    train: Data,
    held_out: Data | None,
    validation: Any,
    f: Callable[[Tensor], Tensor],
    discriminator: nn.Module | None,
    rules: AdversarialOptions,
    seed: int,
) -> dict[str, Any]:
    """What was asked, as plain data."""
    options = {**vars(rules), "optimizer": describe(rules.optimizer), "seed": seed}
    return {
        "model": source.recipe.record(),
        "guide": None,
        "discriminator": None if discriminator is None else type(discriminator).__name__,
        "objective": describe(f),
        "algorithm": "adversarial training",
        "options": {**options, "objective": describe(f)},
        "num_restarts": 1,
        **environment_record(
            whole,
            train_rows=len(train),
            held_out_rows=0 if held_out is None else len(held_out),
            validation=validation if isinstance(validation, int | float) else None,
        ),
        "results": None,
    }


def _judged(found: Adversaries, data: Data, begun: float) -> dict[str, Any]:
    """What came of it: the two-sample test on at most 2,000 rows, None where there are under 20."""
    seed = found.record["options"]["seed"]
    x = _rows(sample_rows(data, JUDGED_ROWS, seed))
    last = found.history["jensen_shannon"][-max(1, len(found.history["jensen_shannon"]) // 5) :]
    test = found.two_sample(x, seed=seed) if len(x) >= FEWEST_ROWS else None
    return {
        "directory": None if found.directory is None else str(found.directory),
        "seed": seed,
        "steps": len(found.history["generator"]),
        "seconds": time.perf_counter() - begun,
        "jensen_shannon": sum(last) / len(last),
        "accuracy": None if test is None else test.accuracy["discriminator"],
        "p_value": None if test is None else test.p_value,
    }
