"""Diagnosis of a fitted run: `diagnose(run)`."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ppl_lvm.core.types import Say
from ppl_lvm.diagnostics.diagnosis import Diagnosis
from ppl_lvm.runs.run import Run


def diagnose(
    run: Run,
    x: Any = None,
    *,
    held_out: Any = None,
    quantities: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    refits: int = 0,
    temperatures: int = 100,
    seed: int = 0,
    say: Say | None = None,
) -> Diagnosis:
    """Table of questions on a fit, each with a number, a verdict and a remedy.

    Args:
        run: the fit, from `fit`, `fit_em`, `fit_mcem` or `load_run`.
        x: the rows it was fitted to; None loads them by the name or path in the run's record.
        held_out: rows that the fit has not used.
        quantities: further test quantities by name: functions of data sets (R, N, P) that return
            one number per data set (R,).
        refits: fits to simulated data, for the calibration of a guide that does not read the data.
        temperatures: number of temperatures of annealed importance sampling.
        seed: seed of every random number; the caller's random state is preserved.
        say: called as say(name, done, total) before each diagnostic.

    Raises:
        ValueError: `x` is None and the run does not say where its rows come from.
    """
    return run.diagnose(
        x,
        held_out=held_out,
        quantities=quantities,
        refits=refits,
        temperatures=temperatures,
        seed=seed,
        say=say,
    )
