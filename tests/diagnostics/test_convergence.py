"""Convergence of synthetic bounds: flat with noise, still rising, falling, correlated."""

import numpy as np
import pytest

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.convergence import climb, convergence, r_hat


def noise(steps: int, seed: int, correlation: float = 0.0, sd: float = 0.5) -> list[float]:
    generator = np.random.default_rng(seed)
    e = generator.normal(0, sd, steps)
    for t in range(1, steps):
        e[t] = correlation * e[t - 1] + (1 - correlation**2) ** 0.5 * e[t]
    return list(e - 10)


def test_flat_bound_is_good() -> None:
    found = convergence({"bound": noise(2000, 0)})
    assert {f.verdict for f in found.findings()} == {"good"}
    assert found.converged
    assert abs(found.bound + 10) < 5 * found.bound_error


def test_rising_bound_has_not_converged() -> None:
    bound = np.array(noise(2000, 0)) + np.linspace(0, 5, 2000)
    found = convergence({"bound": list(bound)})
    assert not found.converged
    assert found.findings()[0].verdict == "bad"
    assert "longer" in found.findings()[0].remedy
    assert abs(found.gain - 1.0) < 5 * found.gain_error


def test_a_gain_lost_in_noise_is_not_called_convergence() -> None:
    bound = np.array(noise(400, 0, sd=2.0)) + np.linspace(0, 2, 400)
    found = convergence({"bound": list(bound)})
    assert found.converged is None
    assert found.findings()[0].verdict == "unknown"


def test_falling_bound_diverges() -> None:
    bound = np.array(noise(2000, 0)) - np.linspace(0, 5, 2000)
    row = convergence({"bound": list(bound)}).findings()[0]
    assert row.verdict == "bad"
    assert "falls" in row.why
    assert "learning rate" in row.remedy


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_false_alarms_are_at_most_one_in_twenty(correlation: float) -> None:
    alarms = [
        any(
            f.verdict in ("warning", "bad")
            for f in convergence({"bound": noise(2000, seed, correlation)}).findings()
        )
        for seed in range(200)
    ]
    assert np.mean(alarms) <= 0.05


def test_restarts_that_disagree_are_named() -> None:
    flat = {"bound": noise(500, 1)}
    assert convergence(flat, [-1.0, -1.01, -1.02]).findings()[2].verdict == "good"
    assert convergence(flat, [-1.0, -1.05, -3.0]).findings()[2].verdict == "warning"
    assert convergence(flat, [-1.0, -2.5, -3.0]).findings()[2].verdict == "bad"


@pytest.mark.parametrize(("apart", "verdict"), [(0.0, "good"), (1.0, "bad")])
def test_r_hat_over_restarts_sees_starts_that_end_in_different_places(
    apart: float, verdict: str
) -> None:
    means = [np.array(noise(20, s, sd=0.05)) + apart * s for s in range(3)]
    found = convergence({"bound": noise(500, 1)}, [-10.0, -10 + apart, -10 + 2 * apart], means)
    assert found.findings()[3].name == "R̂ of the bound over 3 restarts"
    assert found.findings()[3].verdict == verdict


def test_r_hat_of_equal_and_of_parted_chains() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(4, 500, 3))
    assert (r_hat(x) < 1.01).all()
    x[0, :, 1] += 3
    found = r_hat(x)
    assert found[1] > 1.3
    assert (found[[0, 2]] < 1.01).all()
    assert r_hat(np.ones((2, 10))) == 1.0


def test_short_or_broken_histories_cannot_say() -> None:
    with pytest.raises(CannotSayError, match="99 steps"):
        convergence({"bound": [0.0] * 99})
    with pytest.raises(CannotSayError, match="not finite"):
        convergence({"bound": [0.0] * 199 + [float("nan")]})


def test_a_bound_without_noise_is_judged_by_what_lies_ahead() -> None:
    t = np.arange(40)
    way = -5 - 2 * 0.8**t  # what is left after t steps is 2 · 0.8^t
    done, halted = climb({"bound": list(way)}), climb({"bound": list(way[:6])})
    assert halted.ahead == pytest.approx(2 * 0.8**5)
    assert halted.findings()[0].verdict == "bad"
    assert done.ahead == pytest.approx(2 * 0.8**39)
    assert done.findings()[0].verdict == "good"
    assert len(climb({"bound": list(way)}, [-5.0, -5.5]).findings()) == 2
    with pytest.raises(CannotSayError, match="falls"):
        climb({"bound": [-1.0, -2.0, -1.0]})
    with pytest.raises(CannotSayError, match="three"):
        climb({"bound": [-1.0, -0.5]})
