"""Benchmark of signal-to-noise ratios: slopes against theory."""

from pathlib import Path

import pytest
import torch

from ppl_lvm.benchmarks import snr
from ppl_lvm.benchmarks.gradient_suite.samples import local_parameters


def test_slope_of_power_law() -> None:
    assert snr.slope([1, 2, 4, 8], [3, 6, 12, 24]) == pytest.approx(1)
    assert snr.slope([1, 4, 16], [8, 4, 2]) == pytest.approx(-0.5)


@pytest.mark.parametrize("objective", snr.THEORY)
def test_our_and_handwritten_gradients_have_the_same_distribution(objective: str) -> None:
    with local_parameters():
        snr.our_gradients(objective)(8, 50)
        torch.manual_seed(0)
        # Preparing a pair uses random numbers too, so distributions are compared.
        ours = snr.our_gradients(objective)(8, 20_000)
        hand = snr.handwritten_gradients(objective)(8, 20_000)
    error = (ours.var(0) / 20_000 + hand.var(0) / 20_000).sqrt()
    assert ((ours.mean(0) - hand.mean(0)).abs() < 5 * error).all()
    torch.testing.assert_close(ours.std(0), hand.std(0), rtol=0.06, atol=0)


@pytest.mark.slow
def test_snr_slopes_agree_with_theory(tmp_path: Path) -> None:
    result = snr.run(smoke=True, directory=tmp_path)
    for fit in result["slopes"]:
        if fit["estimator"] == "DReG":
            assert fit["against K"] == pytest.approx(0.5, abs=0.15)
        else:  # few draws: only the sign of IWAE's slope is significant
            assert fit["against K"] < -0.2
