"""A compiled step on a CUDA device as one CUDA graph: all its kernels in one launch.

The processor takes some microseconds to launch a kernel, longer than a small program's kernels
take the device. A CUDA graph keeps the launches of one call, with the addresses they read and
write, and replays them. So a batch is copied to where the graph reads it, and losses are copied
out before the next step writes there; a number in the processor's memory would stay what it was
when the graph was made, and a step that reads one is launched kernel by kernel.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ppl_lvm.compiler.capture.tape_diff import close
from ppl_lvm.core.rng import generator_states, restore_generators

Function = Callable[..., list[Tensor]]

logger = logging.getLogger("ppl_lvm.compiler")

_DEVICE = "cuda"


@torch.no_grad()
def in_one_launch(
    function: Function, inputs: Sequence[Tensor], batch: range, changed: Sequence[Tensor]
) -> Function:
    """The function as a CUDA graph, or itself where that cannot be had or gives something else.

    Args:
        function: of tensors; changes some of them in place and returns others.
        inputs: what it will be called with. Those in the places `batch` may be others each time;
            the rest keep their addresses, and their contents may change.
        changed: those of `inputs` that it changes. Here nothing is changed.
    """
    if any(tensor.device.type != _DEVICE for tensor in inputs):
        return function
    before = generator_states()
    kept = [tensor.clone() for tensor in changed]

    def restore() -> None:
        for tensor, value in zip(changed, kept, strict=True):
            tensor.copy_(value)
        restore_generators(before)

    def outcome(step: Function) -> tuple[list[Tensor], list[Tensor]]:
        restore()
        losses = step(*inputs)
        return [tensor.clone() for tensor in (*losses, *changed)], generator_states()

    try:
        graph = CudaGraph(function, inputs, batch)
        (found, drawn), (wanted, due) = outcome(graph), outcome(function)
        # Of numbers drawn by the processor a graph keeps those that were drawn when it was made.
        same = all(map(torch.equal, drawn, due)) and all(map(close, found, wanted))
    except Exception as error:  # a kernel that waits for the processor cannot be in a graph
        logger.info("no CUDA graph, kernels are launched one by one: %s", error)
        return function
    finally:
        restore()
    if not same:
        logger.warning("a CUDA graph of the step gives another result; kernels go one by one")
    return graph if same else function


class CudaGraph:
    """A function of tensors, recorded once; see `in_one_launch` for the arguments.

    Making it calls the function once, and what it changes is changed.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], batch: range) -> None:
        self._function, self._batch = function, batch
        self._inputs = list(inputs)
        for place in batch:
            self._inputs[place] = _like(inputs[place])  # never a caller's own tensor
        self._addresses = [tensor.data_ptr() for tensor in self._inputs]
        self._replay, self._losses = _recorded(function, self._inputs)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """What the function returns, in memory of its own."""
        places = zip(self._inputs, inputs, self._addresses, strict=True)
        for place, (mine, given, address) in enumerate(places):
            if place in self._batch:
                mine.copy_(given)
            elif given.data_ptr() != address:  # elsewhere now, where the graph does not look
                return self._function(*inputs)
        self._replay()
        return [loss.clone() for loss in self._losses]


def _like(tensor: Tensor) -> Tensor:
    """A copy that lies as it does, also where that leaves gaps: compiled code asks for that."""
    copy = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return copy.copy_(tensor)


def _recorded(
    function: Function, inputs: Sequence[Tensor]
) -> tuple[Callable[[], None], list[Tensor]]:
    """A CUDA graph of one call: what replays it, and where its results then are."""
    with torch.cuda.device(inputs[0].device):
        aside = torch.cuda.Stream()  # of this device; torch's own is of the first to have one
        aside.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        # Left again here: where recording fails, `torch.cuda.graph` stays on its stream.
        with torch.cuda.stream(aside):
            function(*inputs)  # once before: libraries set up what they need
            # What other threads ask of the device in the meantime is no part of it.
            with (
                _own_workspaces(),
                torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"),
            ):
                losses = function(*inputs)
        torch.cuda.current_stream().wait_stream(aside)
    return graph.replay, losses


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Have the library of matrix products work in memory of the graph that is recorded inside.

    A graph keeps the address. Torch keeps such memory for each stream, for whichever graph comes
    next on it, and frees it with the first: the others would go on writing there
    (https://github.com/pytorch/pytorch/issues/193402). So none is there before, and none stays.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()
