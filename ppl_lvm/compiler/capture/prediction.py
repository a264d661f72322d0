"""Check that the graph of one step predicts another."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_lvm.compiler.graph.ir import Recording, Tape
from ppl_lvm.core.errors import CannotCaptureError
from ppl_lvm.core.rng import RngState, generator_states

_TOLERANCE = 1e-5  # relative, of the same operations on the same numbers


def check_prediction(
    trial: Recording,
    tape: Tape,
    pairs: dict[int, int],
    before: RngState,
    parameters: Sequence[Tensor],
    batch: Sequence[Tensor],
) -> None:
    """Raise unless the earlier step's graph, from the later step's seed, predicts that step.

    Args:
        trial: of the earlier step, with the later one's sources.
        tape: of the later step, whose gradients are in the parameters' `.grad`.
        pairs: state that the step binds anew, see `tape_diff.state_pairs`.
        before: random states before the later step.
    """
    after = RngState.capture()
    before.restore()
    gradients = [p.grad for p in parameters if p.grad is not None]
    losses = [v for v in pytree.tree_leaves(tape.losses) if isinstance(v, Tensor)]
    try:
        with torch.no_grad():
            outputs = trial.module(*parameters, *batch, *trial.sources, *trial.constants)
    finally:
        generators = generator_states()
        after.restore()
    if not all(map(torch.equal, generators, after.torch)):
        raise CannotCaptureError(
            "the captured step draws other random numbers than the program, which may set a "
            "seed or a random state itself"
        )
    for output, expected in zip(outputs, [*losses, *gradients], strict=True):
        _check_equal(output, expected, "the loss or a gradient")
    for source, state in zip(tape.sources, trial.sources, strict=True):
        rebound = source.index in pairs
        current = tape.live_results[pairs[source.index]] if rebound else source.tensor
        _check_equal(state, current, "a tensor that the program keeps")


def _check_equal(captured: Tensor, eager: Tensor, name: str) -> None:
    tolerance = {"rtol": 0.0, "atol": 0.0}
    if eager.is_floating_point() and eager.numel():
        scale = eager.detach().abs().max()
        if scale.isfinite():
            tolerance = {"rtol": _TOLERANCE, "atol": _TOLERANCE * float(scale)}
    if not torch.allclose(captured.detach(), eager.detach(), equal_nan=True, **tolerance):
        worst = float((captured.double() - eager.double()).abs().max())
        raise CannotCaptureError(f"{name} captured differs from the eager one by {worst:.3g}")
