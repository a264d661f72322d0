"""Compile a graph to machine code with Inductor."""

import copyreg
import logging
import os
import shlex
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

from ppl_lvm.compiler.backend import compiler_process

# Minimum of numbers per thread: with fewer, waking a thread takes longer than it helps (Inductor's
# default of 512 made steps of small programs slower on two cores than on one).
_CHUNK = 4096

# Largest table in bytes of a graph whose results share memory that is planned beforehand. To
# allocate each of a hundred small results takes a tenth of a step's time and more; large tables
# are faster in memory that the previous operation has just left in the cache.
_PLANNED = 4 * 2**20


@cache
def start_isa_probe() -> Thread:
    """Start the search for vector instructions that both compiler and processor have.

    Inductor runs several processes for it, one after another, and caches the answer; importing
    and tracing take about as long.
    """
    with suppress(Exception):  # the compilation reports the error again
        # Imported here, with all that the search imports: two threads that import break each other
        # (setuptools, below `cpp_extension`, changes the import system).
        from torch._inductor import codecache, cpp_builder, cpu_vec_isa  # noqa: F401

        _end_compilers_with_this_process()

    def search() -> None:
        with suppress(Exception):
            cpu_vec_isa.pick_vec_isa()

    thread = Thread(target=search, daemon=True)
    thread.start()
    return thread


def _end_compilers_with_this_process() -> None:
    """Let Inductor start its compilers by `compiler_process`. A killed process leaves them else."""
    from torch._inductor import cpp_builder

    run = getattr(cpp_builder, "_run_compile_cmd", None)
    if run is None or sys.platform != "linux" or not sys.executable:
        return
    launcher = shlex.join([sys.executable, "-I", "-S", compiler_process.__file__])

    def run_to_the_end(cmd_line: str, cwd: str) -> None:
        run(f"{launcher} {os.getpid()} {cmd_line}", cwd)

    cpp_builder._run_compile_cmd = run_to_the_end


def compile_graph(
    graph: fx.GraphModule, inputs: Sequence[Tensor], same_random: bool
) -> Callable[..., Any]:
    """Compile a graph, or load the result from Inductor's cache.

    On a CPU the kernels are called from C++: calls from Python take longer than the kernels of a
    small program. An operation without a C++ interface leaves the calls in Python.

    With `same_random` the function draws from torch's generator the numbers of the graph; without,
    from Inductor's counter-based generator, seeded from torch's.
    """
    search = start_isa_probe()
    # Imported here: Inductor takes a second that captured runs need not wait for.
    from torch._inductor import cpu_vec_isa
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.exc import InductorError

    search.join()

    on_cpu = all(tensor.device.type == "cpu" for tensor in inputs)

    def attempt(calls_in_cpp: bool) -> Callable[..., Any]:
        options = {
            "fallback_random": same_random,
            "cpp_wrapper": calls_in_cpp,
            "cpp.min_chunk_size": _CHUNK,
            # Named, so that the cache key has it: code for other instruction sets, as after a
            # change of ATEN_CPU_CAPABILITY, does not build here.
            "cpp.simdlen": cpu_vec_isa.pick_vec_isa().bit_width(),
            "memory_planning": on_cpu and largest_result(graph) <= _PLANNED,
        }
        with torch.no_grad(), _quiet(options), _portable_cache_keys():
            compiled: Any = compile_fx(graph, list(inputs))
            result: Callable[..., Any] = compiled
            return result

    if not on_cpu or _returns_lists(graph):
        return attempt(False)
    try:
        return attempt(True)
    except InductorError:
        return attempt(False)


def largest_result(graph: fx.GraphModule) -> int:
    """Bytes of the largest tensor that a graph creates, where the size is known beforehand."""
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    results = (pytree.tree_leaves(node.meta.get("val")) for node in nodes)
    tensors = [t for leaves in results for t in leaves if isinstance(t, Tensor)]
    sized = [t for t in tensors if all(isinstance(n, int) for n in t.shape)]  # not by a mask
    return max((t.numel() * t.element_size() for t in sized), default=0)


def _returns_lists(graph: fx.GraphModule) -> bool:
    """True if an operation that Inductor does not lower returns a list of tensors.

    Torch 2.13 mistakes a list of one for a tensor when it calls from C++, and the process dies.
    """
    from torch._inductor.lowering import fallbacks, lowerings

    for node in graph.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            lists = any(isinstance(r.type, torch.ListType) for r in node.target._schema.returns)
            if lists and (node.target in fallbacks or node.target not in lowerings):
                return True
    return False


@contextmanager
def _quiet(options: dict[str, Any]) -> Iterator[None]:
    """Inductor with these options and without warnings about its internals."""
    from torch._inductor import config

    log = logging.getLogger("torch._inductor.ir")  # lists operations without a C interface
    level = log.level
    with warnings.catch_warnings(), config.patch(options):
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


@contextmanager
def _portable_cache_keys() -> Iterator[None]:
    """Cache keys that do not depend on the imports of the process.

    Inductor's key is the pickled graph. Pickle names a memory format by the first module of the
    process that has a name `torch`: one in a script, another under pytest or a command.
    """
    previous = copyreg.dispatch_table.get(torch.memory_format)
    copyreg.dispatch_table[torch.memory_format] = _reduce_by_name
    try:
        yield
    finally:
        del copyreg.dispatch_table[torch.memory_format]
        if previous is not None:
            copyreg.dispatch_table[torch.memory_format] = previous


def _reduce_by_name(layout: torch.memory_format) -> tuple[Any, ...]:
    return eval, (f"__import__('torch').{str(layout).removeprefix('torch.')}",)
