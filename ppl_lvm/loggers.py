"""Logs of a fit in TensorBoard, MLflow and wandb.

    fit(model, None, data, log=loggers.tensorboard("runs/board"))

`log=` takes any function of a dictionary; `print` is one. These pass its finite numbers on. A
library is imported at the first evaluation, so that none of them is needed to import this module.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppl_lvm.core.arguments import checked

__all__ = ["mlflow", "tensorboard", "wandb"]

Log = Callable[[Mapping[str, Any]], None]


@checked
def tensorboard(directory: str | Path) -> Log:
    """Scalars of TensorBoard in a directory, from `torch.utils.tensorboard`."""
    writer: Any = None

    def log(entry: Mapping[str, Any]) -> None:
        nonlocal writer
        if writer is None:
            writer = _library("torch.utils.tensorboard", "tensorboard").SummaryWriter(
                str(directory)
            )
        for name, value in _numbers(entry).items():
            writer.add_scalar(name, value, entry["step"])
        writer.flush()

    return log


@checked
def mlflow(run_id: str | None = None) -> Log:
    """Metrics of MLflow, of its active run or of one by its identity."""
    return lambda entry: _library("mlflow").log_metrics(
        _numbers(entry), step=entry["step"], run_id=run_id
    )


@checked
def wandb(run: Any = None) -> Log:
    """Metrics of Weights & Biases, of its active run or of `run`."""

    def log(entry: Mapping[str, Any]) -> None:
        (run or _library("wandb")).log(_numbers(entry), step=entry["step"])

    return log


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    numbers = {k: float(v) for k, v in entry.items() if isinstance(v, int | float) and k != "step"}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _library(name: str, package: str = "") -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = package or name
        raise ImportError(f"log: {package} is not installed. Run: pip install {package}") from error
