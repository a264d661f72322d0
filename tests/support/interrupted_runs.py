"""Fits of every kind, in processes that a signal ends."""

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ppl_lvm
from ppl_lvm.compiler import policy
from ppl_lvm.core import distributed
from ppl_lvm.models import VAE, FactorModel, GaussianMixture
from ppl_lvm.models.implicit import Implicit

Fit = Callable[..., Any]

WRITE_POINTS = ("replace", "fsync", "open", "chmod")  # of `os`, around which a kill is tried


def _rows(count: int = 70) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1)) + 2 * (
        torch.arange(count)[:, None] % 3
    )


def _svi(model: Any = GaussianMixture, guide: Any = None, **settings: Any) -> Fit:
    chosen: dict[str, Any] = {"batch_size": 16, "num_steps": 120, "validate_every": 20}
    chosen |= {"validation": 10, "schedule": "OneCycleLR(max_lr=0.02, total_steps=200)"}
    chosen |= {"settings": {"components": 3}, "progress": False, **settings}

    def run(**options: Any) -> Any:
        return ppl_lvm.fit(model, guide, _rows(), **chosen, **options)

    return run


def _background(**options: Any) -> Any:
    # The switch to compiled steps comes after about 60 steps, where a process compiles by then.
    policy.COSTS = policy.CostModel(dispatch_seconds=2e-3)
    return _svi(engine="auto", num_steps=200)(**options)


def _em(**settings: Any) -> Fit:
    def run(**options: Any) -> Any:
        model = GaussianMixture(3)
        return ppl_lvm.fit_em(model, _rows(3000), seed=3, restarts=2, **settings, **options)

    return run


def _monte_carlo_em(**options: Any) -> Any:
    x = (_rows(40) > 2).float()
    model = FactorModel(latent=1, likelihood="bernoulli")
    sizes: dict[str, Any] = {"max_iterations": 6, "num_draws": 4, "warmup": 4, "guide_steps": 20}
    return ppl_lvm.fit_mcem(model, x, **sizes, progress=False, **options)


def _adversarial(**options: Any) -> Any:
    chosen: dict[str, Any] = {"num_steps": 150, "batch_size": 32, "progress": False}
    return ppl_lvm.fit_adversarial(Implicit(latent=2), _rows(), **chosen, **options)


VAE_FIT: dict[str, Any] = {
    "model": VAE,
    "settings": {"latent": 2, "hidden": (8,), "likelihood": "gaussian-shared"},
}

KINDS: dict[str, Fit] = {
    "eager": _svi(engine="eager"),
    "captured": _svi(engine="captured"),
    "compiled": _svi(engine="compiled", steps_per_call=5),
    "background": _background,
    "restarts together": _svi(engine="captured", restarts=3),
    "restarts with patience": _svi(engine="captured", restarts=3, patience=1, validate_every=10),
    "restarts one by one": _svi(engine="eager", restarts=3, num_steps=50),
    "vae with patience": _svi(**VAE_FIT, patience=1, validate_every=10, num_steps=200),
    "table of rows": _svi(guide="ppl_lvm.guides:LocalNormal", **VAE_FIT, validation=None),
    "em": _em(tolerance=1e-12, max_iterations=80),
    "online em": _em(decay=0.6, max_iterations=20),
    "monte carlo em": _monte_carlo_em,
    "adversarial": _adversarial,
    "two processes": _svi(engine="eager"),
    "two processes, captured": _svi(engine="captured", validate_every=10),
}


def num_processes(kind: str) -> int:
    """Number of processes that fit a kind together."""
    return 2 if kind.startswith("two processes") else 1


def run_kind(kind: str, directory: Path, **options: Any) -> Any:
    """Fit one kind in a directory, or continue there."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = KINDS[kind]
        resume = distributed.broadcast_from_first((directory / "run.json").exists())
        return fit(directory=directory, resume=resume, **options)


@dataclass(frozen=True)
class Ending:
    """The signal that ends processes before their work is done.

    Attributes:
        number: of the signal.
        moment: ("seconds", s), ("writes", k) or ("never", 0).
        rank: of the process that receives it; None for all.
    """

    number: int = signal.SIGKILL
    moment: tuple[str, float] = ("never", 0)
    rank: int | None = None


def work(kind: str, directory: Path, seconds: float, ending: Ending, output: Path) -> None:
    """Work of a process that ends so, with these seconds between two checkpoints."""
    sys.stdout = sys.stderr = output.open("a", buffering=1)
    how, when = ending.moment
    if ending.rank not in (None, int(os.environ["RANK"])):
        how = "never"
    if how == "seconds":
        timer = threading.Timer(when, os.kill, (os.getpid(), ending.number))
        timer.daemon = True
        timer.start()
    elif how == "writes":
        _end_at_write(int(when), ending.number)
    begun = time.monotonic()
    with distributed.process_group():
        run_kind(kind, directory, checkpoint_seconds=seconds)
    with contextlib.suppress(OSError), output.with_suffix(".seconds").open("w") as file:
        file.write(str(time.monotonic() - begun))


def _end_at_write(count: int, number: int) -> None:
    """Send a signal to this process before the call `count` of a function that writes."""
    left = count

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)
            return function(*args, **kwargs)

        return call

    for name in WRITE_POINTS:
        setattr(os, name, counted(getattr(os, name)))


STATUSES = {
    signal.SIGKILL: {-signal.SIGKILL},
    # Outside the steps SIGTERM ends a process as always.
    signal.SIGTERM: {143, -signal.SIGTERM},
    signal.SIGINT: {130, 1},
}
