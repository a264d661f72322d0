"""Compile a graph in another process.

The other process compiles the graph for tensors of the same shapes and leaves the result in
Inductor's cache on disk, where this process finds it within a second or so. It runs at low
priority, ends with this process, and its input goes through a pipe: no file is left behind.
"""

import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor, fx

from ppl_lvm.compiler.backend.compiler_process import end_with
from ppl_lvm.compiler.backend.inductor import compile_graph, start_isa_probe

logger = logging.getLogger("ppl_lvm.compiler")


class CompileWorker:
    """Another process that compiles one graph at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """True if a compilation has been started and not waited for."""
        return self._process is not None

    def start(self, graph: fx.GraphModule, inputs: Sequence[Tensor], same_random: bool) -> None:
        """Begin to compile a graph of aten operations for tensors like `inputs`."""
        self.stop()
        layouts = [(t.shape, t.stride(), t.dtype, t.device) for t in inputs]
        try:
            packed = _pack(graph)
        except Exception as error:  # an operation that pickle cannot name
            logger.info("not compiled in the background: %s: %s", type(error).__name__, error)
            return
        job = pickle.dumps((packed, layouts, same_random, torch.get_num_threads()))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", __spec__.name, str(os.getpid())],
            start_new_session=True,  # a group of processes, with the compilers that it starts
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(job)
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # the process has ended already; `wait` returns the reason

    def wait(self, announce: Callable[[str], None]) -> str | None:
        """Wait for the compilation; return the reason of a failure."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.poll() is None:
            announce("Waiting for the compiler.")
        assert process.stderr is not None
        with process.stderr:
            output = process.stderr.read().decode(errors="replace").strip()
        if process.wait() == 0:
            return None
        if not output:
            return f"the compiler ended by {process.returncode}"
        return output.splitlines()[-1][:200]

    def stop(self) -> None:
        """Give up the compilation."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if process is not None:
            process.wait()
            assert process.stderr is not None
            process.stderr.close()

    def __del__(self) -> None:
        self.stop()


def _pack(graph: fx.GraphModule) -> bytes:
    """The graph with the names and metadata of its nodes, on which Inductor's cache key depends.

    Pickle would lose both.
    """
    from torch.fx._graph_pickler import GraphPickler

    data: bytes = GraphPickler.dumps(graph)
    return data


def _unpack(data: bytes) -> fx.GraphModule:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx._graph_pickler import GraphPickler
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
    graph = GraphPickler.loads(data, mode)
    assert isinstance(graph, fx.GraphModule)
    return graph


def _serve() -> None:
    """Compile the graph on standard input; the last line of the output names a failure."""
    end_with(int(sys.argv[1]))
    os.nice(10)
    start_isa_probe()
    packed, layouts, same_random, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    inputs = [
        torch.empty_strided(size, stride, dtype=dtype, device=device).zero_()
        for size, stride, dtype, device in layouts
    ]
    try:
        graph = _unpack(packed)
        compiled = compile_graph(graph, inputs, same_random)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        sys.exit(f"{type(error).__name__}: {reason}")
    with torch.no_grad(), suppress(Exception):  # zeros may be invalid data
        compiled(*inputs)  # machine code that kills a process kills this one


if __name__ == "__main__":
    _serve()
