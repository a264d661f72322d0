"""Processes that start fast.

They are forked from a server that has imported torch. Several of them receive the variables of
torchrun, without torchrun, which would import torch too.
"""

import multiprocessing
import os
import socket
import sys
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ppl_lvm.cli import main

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = ("cli", "fitting.svi", "fitting.em", "data", "models", "guides", "report.run_figures")
_CONTEXT.set_forkserver_preload([f"ppl_lvm.{name}" for name in _PRELOADED] + ["torch._dynamo"])


def start_processes(count: int, work: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
    """Start `count` processes that do `work`, with torchrun's variables if there are several."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes: list[BaseProcess] = []
    for rank in range(count):
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        variables |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        process = _CONTEXT.Process(target=_run, args=(variables, work, arguments))
        process.start()
        processes.append(process)
    return processes


def exit_statuses(processes: list[BaseProcess]) -> list[int | None]:
    """Exit statuses of the processes, after all have ended."""
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def run_command(words: list[str], output: Path) -> None:
    """Work that runs `ppl-lvm WORDS` and appends its output to the file `output`."""
    sys.argv = ["ppl-lvm", *words]
    sys.stdout = output.open("a", buffering=1)
    sys.stderr = sys.stdout
    main()


def _run(variables: dict[str, str], work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(variables)
    warnings.simplefilter("ignore")
    work(*arguments)
