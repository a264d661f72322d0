"""Processes of their own that start at once: forked off a server that has imported torch already.

Two of them are what torchrun starts, without torchrun: it too would import torch.
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
_IMPORTED = ("cli", "fit", "em", "data", "models", "guides", "report.draw")
_CONTEXT.set_forkserver_preload([f"ppl_lvm.{name}" for name in _IMPORTED] + ["torch._dynamo"])


def forked(count: int, work: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
    """So many processes, with torchrun's variables if there are several, that do `work`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started: list[BaseProcess] = []
    for rank in range(count):
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        told |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        told |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        process = _CONTEXT.Process(target=_do, args=(told, work, arguments))
        process.start()
        started.append(process)
    return started


def ended(processes: list[BaseProcess]) -> list[int | None]:
    """Their exit statuses, once all have ended."""
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def ppl_lvm(words: list[str], output: Path) -> None:
    """The work of `ppl-lvm WORDS`; what it says goes to the end of the file `output`."""
    sys.argv = ["ppl-lvm", *words]
    sys.stdout = output.open("a", buffering=1)
    sys.stderr = sys.stdout
    main()


def _do(told: dict[str, str], work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(told)
    warnings.simplefilter("ignore")
    work(*arguments)
