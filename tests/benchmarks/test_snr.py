"""Signal-to-noise ratios: the fitted slopes are theory's, ours as the hand-written ones."""

from pathlib import Path

import pytest
import torch

from ppl_lvm.benchmarks import snr
from ppl_lvm.benchmarks.gradient_suite.samples import local_parameters


def test_slope_of_a_power_law() -> None:
    assert snr.slope([1, 2, 4, 8], [3, 6, 12, 24]) == pytest.approx(1)
    assert snr.slope([1, 4, 16], [8, 4, 2]) == pytest.approx(-0.5)


@pytest.mark.parametrize("objective", snr.THEORY)
def test_ours_and_the_hand_written_draw_the_same_gradients(objective: str) -> None:
    with local_parameters():
        snr.by_us(objective)(8, 50)
        torch.manual_seed(0)
        # Preparing a pair draws numbers too; the law is compared, not the draw.
        ours = snr.by_us(objective)(8, 20_000)
        hand = snr.by_hand_written(objective)(8, 20_000)
    error = (ours.var(0) / 20_000 + hand.var(0) / 20_000).sqrt()
    assert ((ours.mean(0) - hand.mean(0)).abs() < 5 * error).all()
    torch.testing.assert_close(ours.std(0), hand.std(0), rtol=0.06, atol=0)


@pytest.mark.slow
def test_slopes_are_theorys(tmp_path: Path) -> None:
    result = snr.run(smoke=True, directory=tmp_path)
    for found in result["slopes"]:
        if found["estimator"] == "DReG":
            assert found["against K"] == pytest.approx(0.5, abs=0.15)
        else:  # few draws drown IWAE's small signal: it falls, and that is all they can say
            assert found["against K"] < -0.2
