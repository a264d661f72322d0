"""Vectorized recordings against the recordings of single restarts."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_lvm.compiler import CannotCaptureError, CapturedGradient, Recording
from ppl_lvm.compiler.passes import HorizontalFusion
from ppl_lvm.compiler.vectorize_restarts import VectorizedRecording

LENGTH = 6
FUSION = HorizontalFusion(min_nodes=0, max_share=math.inf)


def capture(weight: Tensor, x: Tensor, passes: Any, bernoulli: bool = False) -> Recording:
    """The recording of a loop with one draw per iteration."""

    def loss_and_grads(x: Tensor) -> Tensor:
        terms = []
        for t in range(LENGTH):
            noise = torch.empty(len(x)).normal_()
            if bernoulli:
                noise = torch.bernoulli(weight[t].detach().sigmoid().expand(len(x)))
            terms.append(((x[:, t] - weight[t] * noise).sin() ** 2).sum())
        loss = torch.stack(terms).sum()
        loss.backward()
        return loss.detach()

    gradient = CapturedGradient(loss_and_grads, [weight], strict=True, passes=passes)
    for _ in range(3):
        gradient(x)
    (recording,) = gradient.recordings
    return recording


@pytest.mark.parametrize("passes", [(), (FUSION,)], ids=["unfused", "fused"])
def test_vectorized_recording_gives_each_restarts_loss_and_gradient(passes: Any) -> None:
    x = torch.randn(5, LENGTH)
    weights = [torch.nn.Parameter(torch.randn(LENGTH)) for _ in range(3)]
    recordings = [capture(weight, x, passes) for weight in weights]
    generators = [torch.Generator().manual_seed(r) for r in range(3)]
    vectorized = VectorizedRecording(
        recordings, [[w] for w in weights], [[x]] * 3, True, [], generators
    )
    stacked = vectorized.recording
    with torch.no_grad():
        outputs = stacked.module(
            *vectorized.parameters, x, *vectorized.draw(), *stacked.sources, *stacked.constants
        )
        for r, (recording, weight) in enumerate(zip(recordings, weights, strict=True)):
            torch.manual_seed(r)
            expected = recording.module(weight, x, *recording.sources, *recording.constants)
            for output, target in zip(outputs, expected, strict=True):
                torch.testing.assert_close(output[r], target)


def test_draw_with_computed_parameters_cannot_be_vectorized() -> None:
    x = torch.randn(5, LENGTH)
    weight = torch.nn.Parameter(torch.randn(LENGTH))
    recording = capture(weight, x, (), bernoulli=True)
    with pytest.raises(CannotCaptureError, match="it draws by bernoulli"):
        VectorizedRecording([recording], [[weight]], [[x]], True, [], [torch.Generator()])
