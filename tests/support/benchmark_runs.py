"""Smoke runs of benchmarks, one per process and benchmark."""

import functools
import importlib
import tempfile
from pathlib import Path

from ppl_lvm.benchmarks.harness import Result


@functools.cache
def smoke_run(name: str) -> tuple[Result, Path]:
    """(result of the smoke run, its folder)."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    module = importlib.import_module(f"ppl_lvm.benchmarks.{name}")
    return module.run(smoke=True, directory=folder), folder
