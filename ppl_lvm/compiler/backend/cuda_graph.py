"""CUDA graphs of compiled steps.

The processor takes some microseconds to launch a kernel, longer than a small program's kernels run
on the device. A CUDA graph stores the launches of one call, with the addresses that they read and
write, and replays them in one launch. So a batch is copied to the address that the graph reads, and
losses are copied out before the next step overwrites them. A number in the processor's memory would
keep its value of the capture; a step that reads one is launched kernel by kernel.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ppl_lvm.compiler.backend.numerics import equal_to_rounding
from ppl_lvm.core.rng import generator_states, restore_generators

Function = Callable[..., list[Tensor]]

logger = logging.getLogger("ppl_lvm.compiler")

_DEVICE = "cuda"


@torch.no_grad()
def as_cuda_graph(
    function: Function, inputs: Sequence[Tensor], batch: range, changed: Sequence[Tensor]
) -> Function:
    """The function as a CUDA graph, or itself where a graph fails or gives other results.

    Args:
        function: of tensors; changes some of them in place and returns others.
        inputs: its arguments. Those in the places `batch` may be other tensors at each call; the
            rest keep their addresses, and their contents may change.
        changed: those of `inputs` that it changes; they are restored here.
    """
    if any(tensor.device.type != _DEVICE for tensor in inputs):
        return function
    before = generator_states()
    values = [tensor.clone() for tensor in changed]

    def restore() -> None:
        for tensor, value in zip(changed, values, strict=True):
            tensor.copy_(value)
        restore_generators(before)

    def outcome(step: Function) -> tuple[list[Tensor], list[Tensor]]:
        restore()
        losses = step(*inputs)
        return [tensor.clone() for tensor in (*losses, *changed)], generator_states()

    try:
        graph = CudaGraph(function, inputs, batch)
        (results, generators), (expected, due) = outcome(graph), outcome(function)
        # A graph repeats the numbers that the processor drew at its capture.
        same = all(map(torch.equal, generators, due)) and all(
            map(equal_to_rounding, results, expected)
        )
    except Exception as error:  # such as a kernel that waits for the processor
        logger.info("no CUDA graph, kernels are launched one by one: %s", error)
        return function
    finally:
        restore()
    if not same:
        logger.warning(
            "a CUDA graph of the step gives another result; kernels are launched one by one"
        )
    return graph if same else function


class CudaGraph:
    """A function of tensors, captured once; see `as_cuda_graph` for the arguments.

    The constructor calls the function, which changes its arguments.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], batch: range) -> None:
        self._function, self._batch = function, batch
        self._inputs = list(inputs)
        for place in batch:
            self._inputs[place] = _copy_layout(inputs[place])  # never a caller's tensor
        self._addresses = [tensor.data_ptr() for tensor in self._inputs]
        self._replay, self._losses = _capture(function, self._inputs)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The results of the function, in new memory."""
        places = zip(self._inputs, inputs, self._addresses, strict=True)
        for place, (static, tensor, address) in enumerate(places):
            if place in self._batch:
                static.copy_(tensor)
            elif tensor.data_ptr() != address:  # moved: the graph would read the old address
                return self._function(*inputs)
        self._replay()
        return [loss.clone() for loss in self._losses]


def _copy_layout(tensor: Tensor) -> Tensor:
    """A copy with the same strides, gaps included: compiled code requires them."""
    copy = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return copy.copy_(tensor)


def _capture(
    function: Function, inputs: Sequence[Tensor]
) -> tuple[Callable[[], None], list[Tensor]]:
    """A CUDA graph of one call: a function that replays it, and the tensors of its results."""
    with torch.cuda.device(inputs[0].device):
        stream = torch.cuda.Stream()  # of this device; torch's default may be another's
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        # This context leaves the stream: where capture fails, `torch.cuda.graph` stays on it.
        with torch.cuda.stream(stream):
            function(*inputs)  # a first call, in which libraries initialize
            # Calls of other threads during the capture are no part of it.
            with (
                _private_workspaces(),
                torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
            ):
                losses = function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
    return graph.replay, losses


@contextmanager
def _private_workspaces() -> Iterator[None]:
    """Give cuBLAS workspaces in the memory of the graph that is captured inside.

    A graph stores the address. Torch keeps one workspace per stream, shares it among the graphs
    captured there, and frees it with the first: the others would continue to write there
    (https://github.com/pytorch/pytorch/issues/193402). So none exists before or after a capture.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()
