"""Compilers end with the process that started them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._inductor import config
from torch.fx.experimental.proxy_tensor import make_fx

import forked
from ppl_lvm.compiler.backend import compiler_process
from ppl_lvm.compiler.backend.inductor import compile_graph

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")

PARENT = """
import os, subprocess, sys
command = ["sh", "-c", "sleep 1000 & echo $! > child; wait"]
subprocess.run([sys.executable, "-I", "-S", *sys.argv[1:], str(os.getpid()), *command])
"""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_children_of_a_command_end_with_a_killed_process(tmp_path: Path) -> None:
    words = [sys.executable, "-I", "-S", "-c", PARENT, compiler_process.__file__]
    child = tmp_path / "child"
    with subprocess.Popen(words, cwd=tmp_path) as parent:
        wait_until(lambda: child.exists() and child.read_text().endswith("\n"))
        assert is_running(child.read_text().strip())
        parent.kill()
    wait_until(lambda: not is_running(child.read_text().strip()))


def test_status_and_output_are_those_of_the_command() -> None:
    words = [sys.executable, "-I", "-S", compiler_process.__file__, str(os.getpid())]
    done = subprocess.run([*words, "sh", "-c", "echo out; exit 3"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "out\n")


COMPILER = """#!/bin/sh
case "$1" in --version | -v | -print*) exec g++ "$@" ;; esac
sleep 1000 &
wait
"""


def compile_with(compiler: str, folder: str) -> None:
    """Compile a graph that is in no cache."""
    os.environ |= {"PPL_LVM_TEST": compiler, "TORCHINDUCTOR_CACHE_DIR": folder}
    x = torch.arange(12.0).reshape(3, 4)
    graph = make_fx(lambda x: [(x.exp() + 1).log().sum(0)], tracing_mode="fake")(x)
    with config.patch({"cpp.cxx": (None, compiler)}):
        compile_graph(graph, [x], same_random=True)


def processes_with(token: str) -> dict[str, str]:
    """Process -> name, of those that have the token in their environment."""
    names = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"PPL_LVM_TEST={token}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                names[folder.name] = (folder / "comm").read_text().strip()
        except OSError:
            continue
    return names


@pytest.mark.slow
@pytest.mark.xdist_group("forked")
def test_compilers_of_a_killed_process_end(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o700)
    words = (str(compiler), str(tmp_path / "cache"))
    (process,) = forked.start_processes(1, compile_with, *words)
    wait_until(lambda: "sleep" in processes_with(words[0]).values())
    process.kill()
    process.join()
    wait_until(lambda: not processes_with(words[0]))
