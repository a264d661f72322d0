"""Compile a graph in another process, so that this one goes on with its steps.

The other process compiles the same graph for tensors of the same shapes and leaves the result in
the inductor's cache on disk, where this process finds it and needs a second or so instead of many.
It runs at low priority, and what it is given goes through a pipe: nothing is left lying about.
"""

import copyreg
import logging
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from threading import Thread
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

# Numbers that a thread must have to do: with fewer, waking it takes longer than it helps (the
# inductor's own 512 made steps of small programs slower on two cores than on one).
_CHUNK = 4096

# Bytes of the largest table of a graph whose results share memory that is laid out beforehand.
# To take memory for each of a hundred small results is a tenth of a step's time and more; large
# tables are quicker in what the one before has just left in the cache.
_PLANNED = 4 * 2**20

# Sizes, strides, type and device of a tensor: what a compiler needs to know of it.
_Shape = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]


class CompileWorker:
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
        try:
            packed = _packed(graph)
        except Exception:  # an operation that no other process knows: compiled here, in its turn
            return
        job = pickle.dumps((packed, shapes, same_random, torch.get_num_threads()))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", __spec__.name],
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


@cache
def start_isa_probe() -> Thread:
    """The search for vector instructions that both the compiler and the processor have, begun.

    The inductor starts several processes for it, one after another, and keeps the answer; this
    one has imports and a trace to make meanwhile, for about as long.
    """
    with suppress(Exception):  # what is wrong, the compilation says again
        # Imported here, before the thread needs them: two threads that import break each other.
        from torch._inductor import codecache, cpp_builder, cpu_vec_isa  # noqa: F401

    def search() -> None:
        with suppress(Exception):
            cpu_vec_isa.pick_vec_isa()

    thread = Thread(target=search, daemon=True)
    thread.start()
    return thread


def compile_graph(
    graph: fx.GraphModule, inputs: Sequence[Tensor], same_random: bool
) -> Callable[..., Any]:
    """The graph as machine code, from the inductor's cache if it has been compiled before.

    On a CPU the calls of the kernels are C++ too: from Python they take longer than the kernels
    of a small program themselves. An operation that cannot be had so leaves them in Python.

    With `same_random` it draws from torch's generator what the graph would draw; without, from
    the inductor's own counter-based generator, seeded from it.
    """
    search = start_isa_probe()
    # Imported here: the inductor takes a second that captured runs need not wait for.
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.exc import InductorError

    search.join()

    on_cpu = all(tensor.device.type == "cpu" for tensor in inputs)

    def attempt(calls_in_cpp: bool) -> Callable[..., Any]:
        options = {
            "fallback_random": same_random,
            "cpp_wrapper": calls_in_cpp,
            "cpp.min_chunk_size": _CHUNK,
            "memory_planning": on_cpu and largest(graph) <= _PLANNED,
        }
        with torch.no_grad(), _quietly(options), _known_anywhere():
            compiled: Any = compile_fx(graph, list(inputs))
            result: Callable[..., Any] = compiled
            return result

    if not on_cpu or _returns_lists(graph):
        return attempt(False)
    try:
        return attempt(True)
    except InductorError:
        return attempt(False)


def largest(graph: fx.GraphModule) -> int:
    """Bytes of the largest tensor that a graph makes."""
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    made = (pytree.tree_leaves(node.meta.get("val")) for node in nodes)
    tensors = [t for found in made for t in found if isinstance(t, Tensor)]
    # How many numbers a mask picks is known to nobody yet.
    known = [t for t in tensors if all(isinstance(n, int) for n in t.shape)]
    return max((t.numel() * t.element_size() for t in known), default=0)


def _returns_lists(graph: fx.GraphModule) -> bool:
    """Whether an operation that the inductor calls as it stands returns a list of tensors.

    Torch 2.13 takes a list of one for a tensor when it calls from C++, and the process dies.
    """
    from torch._inductor.lowering import fallbacks, lowerings

    for node in graph.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            lists = any(isinstance(r.type, torch.ListType) for r in node.target._schema.returns)
            if lists and (node.target in fallbacks or node.target not in lowerings):
                return True
    return False


@contextmanager
def _quietly(options: dict[str, Any]) -> Iterator[None]:
    """The inductor with these options, without its remarks on its own internals."""
    from torch._inductor import config

    log = logging.getLogger("torch._inductor.ir")  # names each operation that has no C interface
    level = log.level
    with warnings.catch_warnings(), config.patch(options):
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


@contextmanager
def _known_anywhere() -> Iterator[None]:
    """Have the inductor find in its cache what a program with other imports has left there.

    It looks a graph up by its pickled form. Pickle names a memory format by the first module of
    the process that has a name `torch`: one in a script, another under pytest or a command.
    """
    kept = copyreg.dispatch_table.get(torch.memory_format)
    copyreg.dispatch_table[torch.memory_format] = _by_name
    try:
        yield
    finally:
        del copyreg.dispatch_table[torch.memory_format]
        if kept is not None:
            copyreg.dispatch_table[torch.memory_format] = kept


def _by_name(layout: torch.memory_format) -> tuple[Any, ...]:
    return eval, (f"__import__('torch').{str(layout).removeprefix('torch.')}",)


def _packed(graph: fx.GraphModule) -> bytes:
    """The graph with its nodes' names and what is noted of them.

    Pickle would keep neither, and the inductor finds in its cache what is the same in both.
    """
    from torch.fx._graph_pickler import GraphPickler

    data: bytes = GraphPickler.dumps(graph)
    return data


def _unpacked(data: bytes) -> fx.GraphModule:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx._graph_pickler import GraphPickler
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
    graph = GraphPickler.loads(data, mode)
    assert isinstance(graph, fx.GraphModule)
    return graph


def _serve() -> None:
    """Compile what comes through standard input; the last line of what is said names a failure."""
    import os

    os.nice(10)
    start_isa_probe()
    packed, shapes, same_random, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    inputs = [
        torch.empty_strided(size, stride, dtype=dtype, device=device).zero_()
        for size, stride, dtype, device in shapes
    ]
    try:
        graph = _unpacked(packed)
        compiled = compile_graph(graph, inputs, same_random)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        sys.exit(f"{type(error).__name__}: {reason}")
    with torch.no_grad(), suppress(Exception):  # zeros may be no data for it
        compiled(*inputs)  # machine code that kills a process kills this one


if __name__ == "__main__":
    _serve()
