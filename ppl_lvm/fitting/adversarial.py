"""Fit an implicit model against a discriminator.

    adversaries = fit_adversarial(Implicit(latent=2), x, objective="maximum_likelihood")
    adversaries.generator.draw(100), adversaries.two_sample(held_out)

Steps alternate: the discriminator a(x) approaches log p_D(x) - log p_G(x), the generator descends
the mean of f(a(G(z))), with f from `ppl_lvm.divergences.density_ratio`. There is no bound to
monitor, and the two may circle each other. `penalty` damps the circling, and the two-sample test
reports the result.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppl_lvm.core import distributed
from ppl_lvm.core.console import Progress
from ppl_lvm.core.messages import unknown
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.torch_specs import describe
from ppl_lvm.core.validate import DataSource, ProgramSource
from ppl_lvm.data import Data
from ppl_lvm.data.selection import first_rows, sample_rows
from ppl_lvm.divergences import density_ratio
from ppl_lvm.divergences.density_ratio import Discriminator
from ppl_lvm.fitting.session import Session, recorded, releases_directory
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.pair import copy_programs
from ppl_lvm.programs.sources import ModelFactory
from ppl_lvm.runs.adversarial import Adversaries, load_adversaries
from ppl_lvm.runs.run import TEMPLATE_ROWS
from ppl_lvm.training.adversarial import Game
from ppl_lvm.training.option_signatures import takes_options
from ppl_lvm.training.options import AdversarialOptions

OBJECTIVES = ("minimax", "non_saturating", "maximum_likelihood")
TEST_ROWS, MIN_TEST_ROWS = 2000, 20  # of the two-sample test: largest and smallest number


@takes_options(AdversarialOptions)
@releases_directory
def fit_adversarial(
    generator: ProgramSource, data: DataSource, options: AdversarialOptions
) -> Adversaries:
    """Train copies of a generator and a discriminator.

    Args:
        generator: a module with `draw(n)`, rows (n, P) with gradients; a class of such, or its
            address. Its optional method `initialize(x)` is called.
        data: rows (N, P); see `load_data`. The two-sample test uses the rows held out, else the
            training rows.

    Raises:
        ValueError: the data are not rows, the generator has no `draw`, or an option is out of
            range.
        FloatingPointError: a loss is not finite; names the network and the step.
    """
    if distributed.world_size() > 1:
        raise ValueError("fit_adversarial: it runs in one process. Start it without torchrun.")
    session = Session(data, options)
    session.repeat_weighted_rows("fit_adversarial")
    f = _objective(options.objective)
    x = _rows(session.train)
    factory = ModelFactory(copy_programs(generator)[0], options.settings)
    network = options.discriminator
    with preserve_rng():
        torch.manual_seed(session.seed)
        G: Any = factory.make((x,))
        if not hasattr(G, "draw"):
            raise ValueError(
                f"{factory.recipe.name} has no draw(n) that gives n rows with gradients. Write "
                "one, as models/implicit.py does; a model with a density is trained by fit."
            )
        _check_generator(G, x)
        a = Discriminator(x) if network is None else copy_programs(network)[0]
        _check_discriminator(a, x)
        finished = session.open(
            factory,
            None,
            recorded(options, objective=f),
            definitions={"objective": f, "discriminator": network},
            load=load_adversaries,
            objective=describe(f),
            algorithm="adversarial training",
            discriminator=None if network is None else type(network).__name__,
        )
        if finished is not None:
            return finished
        progress = Progress(options.num_steps, figure="Jensen-Shannon", shown=options.progress)
        game = Game(G, a, x, f, options, progress)
        session.iterate(game, options.num_steps)
    adversaries = Adversaries(
        generator=G,
        discriminator=a,
        history=game.history,
        record=session.record,
        template=x[:TEMPLATE_ROWS],
        directory=session.path,
    )
    session.record["results"] = _results(adversaries, session)
    return session.close(
        adversaries, lambda: _two_sample(adversaries, session), name="two-sample test", draw=_draw
    )


def _draw(adversaries: Adversaries, data: Data, folder: Path) -> None:
    from ppl_lvm.report.figures.adversarial import draw

    draw(adversaries, _rows(data), folder)


def _objective(objective: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    if not isinstance(objective, str):
        return objective
    if objective not in OBJECTIVES:
        raise ValueError(unknown("objective", objective, OBJECTIVES))
    f: Callable[[Tensor], Tensor] = getattr(density_ratio, objective)
    return f


def _rows(data: Data) -> Tensor:
    """All rows (N, P)."""
    x, *more = first_rows(data, len(data))
    if more or x.dim() != 2 or not x.is_floating_point() or not len(x):
        raise ValueError(
            "fit_adversarial takes rows (N, P) of floating-point numbers, got shape "
            f"{tuple(x.shape)} of {str(x.dtype).removeprefix('torch.')} and {len(more)} further "
            "tensors. Pass one tensor, as in x.reshape(len(x), -1).float()."
        )
    if (gaps := ~x.isfinite()).any():
        row, column = gaps.nonzero()[0].tolist()
        raise ValueError(
            f"fit_adversarial takes complete rows: {data.locate(row, column)} is missing "
            f"({int(gaps.sum())} such in all). A generator draws rows without gaps. Leave the "
            "incomplete rows out."
        )
    return x


def _check_generator(G: Any, x: Tensor) -> None:
    """Raise unless the generator draws rows like x, with gradients."""
    name = type(G).__name__
    with dry_run(G):
        draws = G.draw(2)
    shape = tuple(draws.shape) if isinstance(draws, Tensor) else type(draws).__name__
    if shape != (2, x.shape[1]):
        raise ValueError(
            f"{name}: draw(2) gives {shape}, and two rows of the data are {(2, x.shape[1])}. "
            "Return n rows (n, P)."
        )
    if not draws.requires_grad:
        raise ValueError(
            f"{name}: no gradient reaches its parameters through draw(n). Draw without "
            "torch.no_grad() and detach()."
        )


def _check_discriminator(a: nn.Module, x: Tensor) -> None:
    """Raise unless the discriminator returns one number a row."""
    try:
        with torch.no_grad():
            shape = tuple(a(x[:2]).shape)
    except RuntimeError as error:
        raise ValueError(
            f"The discriminator does not run on rows of shape {tuple(x.shape[1:])}: {error}"
        ) from error
    if shape != (len(x[:2]),):
        raise ValueError(
            f"A discriminator returns one number a row, (N,) of rows (N, P); {type(a).__name__} "
            f"gives {shape} of {tuple(x[:2].shape)}. End it with nn.Flatten(0)."
        )


def _results(adversaries: Adversaries, session: Session) -> dict[str, Any]:
    """Results without the two-sample test."""
    history = adversaries.history["jensen_shannon"]
    last = history[-max(1, len(history) // 5) :]
    return {
        "directory": None,
        "seed": session.seed,
        "steps": len(adversaries.history["generator"]),
        "seconds": session.seconds,
        "jensen_shannon": sum(last) / len(last),
        "accuracy": None,
        "p_value": None,
        "two_sample_of": session.evaluation_name,
    }


def _two_sample(adversaries: Adversaries, session: Session) -> dict[str, Any]:
    """Two-sample test on at most 2,000 rows; nothing if there are under 20 rows."""
    x = _rows(sample_rows(session.evaluation_data, TEST_ROWS, session.seed))
    if len(x) < MIN_TEST_ROWS:
        return {}
    test = adversaries.two_sample(x, seed=session.seed)
    return {"accuracy": test.accuracy["discriminator"], "p_value": test.p_value}
