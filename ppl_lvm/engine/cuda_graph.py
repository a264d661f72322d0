"""A compiled step on a CUDA device as one CUDA graph: all its kernels in one launch.

The processor takes some microseconds to launch a kernel, longer than a small program's kernels
take the device. A CUDA graph keeps the launches of one call, with the addresses they read and
write, and replays them. So a batch is copied to where the graph reads it, and losses are copied
out before the next step writes there; a number in the processor's memory would stay what it was
when the graph was made, and a step that reads one is launched kernel by kernel.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppl_lvm.draws import draw_states, restore_draws
from ppl_lvm.engine.compare import close

Function = Callable[..., list[Tensor]]

logger = logging.getLogger("ppl_lvm.engine")

_DEVICE = "cuda"


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
    before = draw_states()
    kept = [tensor.clone() for tensor in changed]

    def restore() -> None:
        for tensor, value in zip(changed, kept, strict=True):
            tensor.copy_(value)
        restore_draws(before)

    def outcome(step: Function) -> list[Tensor]:
        losses = step(*inputs)
        result = [tensor.clone() for tensor in (*losses, *changed)]
        restore()
        return result

    try:
        graph = CudaGraph(function, inputs, batch)
        restore()
        same = all(map(close, outcome(graph), outcome(function)))
    except RuntimeError as error:  # a kernel that waits for the processor cannot be in a graph
        restore()
        logger.info("no CUDA graph, kernels are launched one by one: %s", error)
        return function
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
            self._inputs[place] = inputs[place].clone()  # never a caller's own tensor
        self._replay, self._losses = _recorded(function, self._inputs)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """What the function returns, in memory of its own."""
        for place, (mine, given) in enumerate(zip(self._inputs, inputs, strict=True)):
            if place in self._batch:
                mine.copy_(given)
            elif mine is not given:  # elsewhere now, where the graph does not look
                return self._function(*inputs)
        self._replay()
        return [loss.clone() for loss in self._losses]


def _recorded(
    function: Function, inputs: Sequence[Tensor]
) -> tuple[Callable[[], None], list[Tensor]]:
    """A CUDA graph of one call: what replays it, and where its results then are."""
    with torch.cuda.device(inputs[0].device):
        # Once before, on a stream as it will be recorded on: libraries set up what they need.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            function(*inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # What other threads ask of the device in the meantime is no part of it.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            losses = function(*inputs)
    return graph.replay, losses
