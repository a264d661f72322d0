"""Compile a graph in another process, so that this one goes on with its steps.

The other process compiles the same graph for tensors of the same shapes and leaves the result in
the inductor's cache on disk, where this process finds it and needs a second or so instead of many.
It runs at low priority, and what it is given goes through a pipe: nothing is left lying about.
"""

import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

# Sizes, strides, type and device of a tensor: what a compiler needs to know of it.
_Shape = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]


class Workshop:
    """One graph at a time, compiled elsewhere."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def used(self) -> bool:
        """Whether a compilation has been started and not waited for."""
        return self._process is not None

    def start(self, graph: fx.GraphModule, inputs: Sequence[Tensor], same_random: bool) -> None:
        """Begin to compile a graph of aten operations for tensors like `inputs`."""
        self.stop()
        shapes = [(t.shape, t.stride(), t.dtype, t.device) for t in inputs]
        job = pickle.dumps((graph, shapes, same_random, torch.get_num_threads()))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "ppl_lvm.engine.background"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(job)
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already; `wait` says why

    def wait(self, announce: Callable[[str], None]) -> str | None:
        """Let the compilation come to its end; why it failed, if it did."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.poll() is None:
            announce("Waiting for the compiler.")
        assert process.stderr is not None
        with process.stderr:
            said = process.stderr.read().decode(errors="replace").strip()
        if process.wait() == 0:
            return None
        return (
            said.splitlines()[-1][:200] if said else f"the compiler ended by {process.returncode}"
        )

    def stop(self) -> None:
        """Give up what is being compiled."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.kill()
        if process is not None:
            process.wait()
            assert process.stderr is not None
            process.stderr.close()

    def __del__(self) -> None:
        self.stop()


def compile_graph(
    graph: fx.GraphModule, inputs: Sequence[Tensor], same_random: bool
) -> Callable[..., Any]:
    """The graph as machine code, from the inductor's cache if it has been compiled before.

    With `same_random` it draws from torch's generator what the graph would draw; without, from
    the inductor's own counter-based generator, seeded from it.
    """
    # Imported here: the inductor takes a second that captured runs need not wait for.
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx

    with (
        torch.no_grad(),
        warnings.catch_warnings(),
        config.patch({"fallback_random": same_random}),
    ):
        warnings.simplefilter("ignore")  # the compiler's remarks on its own internals
        compiled: Any = compile_fx(graph, list(inputs))
    result: Callable[..., Any] = compiled
    return result


def _serve() -> None:
    """Compile what comes through standard input; the last line of what is said names a failure."""
    import os

    import torch._dynamo  # in this order: the inductor expects it to be there

    os.nice(10)
    graph, shapes, same_random, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    inputs = [
        torch.empty_strided(size, stride, dtype=dtype, device=device).zero_()
        for size, stride, dtype, device in shapes
    ]
    try:
        compile_graph(graph, inputs, same_random)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        sys.exit(f"{type(error).__name__}: {reason}")


if __name__ == "__main__":
    _serve()
