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
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from threading import Thread
from typing import IO

import torch
from torch import Tensor, fx

from ppl_lvm.compiler.backend.compiler_process import end_with
from ppl_lvm.compiler.backend.inductor import compile_graph, start_isa_probe
from ppl_lvm.compiler.compile_times import timed

logger = logging.getLogger("ppl_lvm.compiler")


class CompileWorker:
    """Another process that compiles one graph at a time, in the order of the calls of `start`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._job: Hashable = None  # of the process
        self._queue: dict[Hashable, bytes] = {}
        self._finished: dict[Hashable, str | None] = {}  # jobs, with the reason of a failure

    @property
    def running(self) -> bool:
        """True if a compilation has been started and not waited for."""
        return self._process is not None or bool(self._finished)

    def knows(self, job: Hashable) -> bool:
        """True if this job has been started and not waited for."""
        current = self._process is not None and self._job == job
        return current or job in self._queue or job in self._finished

    def pending(self, job: Hashable) -> bool:
        """True if this job has been started and has not ended."""
        if self._process is not None and self._process.poll() is not None:
            self._collect()
        return self.knows(job) and job not in self._finished

    def start(
        self,
        graph: fx.GraphModule,
        inputs: Sequence[Tensor],
        same_random: bool,
        job: Hashable = None,
        expected: float = 1.0,
    ) -> None:
        """Begin to compile a graph of aten operations for tensors like `inputs`.

        Args:
            job: tells it from others.
            expected: seconds by the model, against which the time is kept (`compile_times`).
        """
        layouts = [(t.shape, t.stride(), t.dtype, t.device) for t in inputs]
        try:
            packed = _pack(graph)
        except Exception as error:  # an operation that pickle cannot name
            logger.info("not compiled in the background: %s: %s", type(error).__name__, error)
            return
        rest = layouts, same_random, torch.get_num_threads(), expected
        self._queue[job] = pickle.dumps((packed, *rest))
        if self._process is None:
            self._next()

    def _next(self) -> None:
        """Start the process of the first job in the queue."""
        if not self._queue:
            return
        self._job = next(iter(self._queue))
        packed = self._queue.pop(self._job)
        command = [sys.executable, "-W", "ignore", "-m", __spec__.name]
        self._process = subprocess.Popen(
            [*command, str(os.getpid()), str(time.time())],
            start_new_session=True,  # a group of processes, with the compilers that it starts
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        # In a thread: the pipe is full until the process has imported torch.
        Thread(target=_send, args=(self._process.stdin, packed), daemon=True).start()

    def wait(self, announce: Callable[[str], None], job: Hashable = None) -> str | None:
        """Wait for a job; return the reason of a failure."""
        if self.pending(job):
            announce("Waiting for the compiler.")
        while self.pending(job):
            self._collect()
        return self._finished.pop(job, None)

    def _collect(self) -> None:
        """Wait for the process, keep the reason of a failure, start the next."""
        process, self._process = self._process, None
        assert process is not None
        assert process.stderr is not None
        with process.stderr:
            output = process.stderr.read().decode(errors="replace").strip()
        reason = None
        if process.wait() != 0:
            ended = f"the compiler ended by {process.returncode}"
            reason = output.splitlines()[-1][:200] if output else ended
        self._finished[self._job] = reason
        self._next()

    def stop(self) -> None:
        """Give up all jobs."""
        process, self._process = self._process, None
        self._queue.clear()
        self._finished.clear()
        if process is not None and process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if process is not None:
            process.wait()
            assert process.stderr is not None
            process.stderr.close()

    def __del__(self) -> None:
        self.stop()


def _send(pipe: IO[bytes], packed: bytes) -> None:
    with suppress(BrokenPipeError, ValueError), pipe:
        pipe.write(packed)  # `wait` returns the reason if the process has ended


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
    packed, layouts, same_random, threads, expected = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    inputs = [
        torch.empty_strided(size, stride, dtype=dtype, device=device).zero_()
        for size, stride, dtype, device in layouts
    ]
    try:
        with timed(expected, float(sys.argv[2])):
            compiled = compile_graph(_unpack(packed), inputs, same_random)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        sys.exit(f"{type(error).__name__}: {reason}")
    with torch.no_grad(), suppress(Exception):  # zeros may be invalid data
        compiled(*inputs)  # machine code that kills a process kills this one


if __name__ == "__main__":
    _serve()
