"""Convergence of synthetic bounds."""

import re
from typing import Any

import numpy as np
import pytest
from diagnostic_cases import DiagnosticCases

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.base import Restarts
from ppl_lvm.diagnostics.convergence import (
    convergence,
    monotone_convergence,
    r_hat,
    spread_finding,
)


def _noisy_bound(rise: float, bounds: list[float]) -> Any:
    draw = np.random.default_rng(0)
    history = {"bound": list(draw.normal(-5, 0.1, 500) + np.linspace(0, rise, 500))}
    means = [draw.normal(b, 0.01, 20) for b in bounds]
    return convergence(history, bounds, means)


def _monotone_bound(rate: float, steps: int, restarts: list[float]) -> Any:
    return monotone_convergence({"bound": list(-(rate ** np.arange(steps)))}, restarts)


CASES = {
    "convergence": DiagnosticCases(
        good=[
            lambda: _noisy_bound(0.0, [-5.0, -5.01]),
            lambda: _monotone_bound(0.5, 30, [0.0, 0.0]),
        ],
        faulty=[
            lambda: _noisy_bound(5.0, [-5.0, -6.0]),
            lambda: _monotone_bound(0.9, 5, [0.0, -1.0]),
        ],
    )
}


def noise(steps: int, seed: int, correlation: float = 0.0, sd: float = 0.5) -> list[float]:
    generator = np.random.default_rng(seed)
    e = generator.normal(0, sd, steps)
    for t in range(1, steps):
        e[t] = correlation * e[t - 1] + (1 - correlation**2) ** 0.5 * e[t]
    return list(e - 10)


def test_flat_bound_is_good() -> None:
    result = convergence({"bound": noise(2000, 0)})
    assert {f.verdict for f in result.findings()} == {"good"}
    assert result.converged
    assert abs(result.bound + 10) < 5 * result.bound_error


def test_rising_bound_has_not_converged() -> None:
    bound = np.array(noise(2000, 0)) + np.linspace(0, 5, 2000)
    result = convergence({"bound": list(bound)})
    assert not result.converged
    assert result.findings()[0].verdict == "bad"
    assert "longer" in result.findings()[0].remedy
    assert abs(result.gain - 1.0) < 5 * result.gain_error


def test_convergence_is_unknown_when_noise_hides_a_gain() -> None:
    bound = np.array(noise(400, 0, sd=2.0)) + np.linspace(0, 2, 400)
    result = convergence({"bound": list(bound)})
    assert result.converged is None
    assert result.findings()[0].verdict == "unknown"


def test_falling_bound_diverges() -> None:
    bound = np.array(noise(2000, 0)) - np.linspace(0, 5, 2000)
    row = convergence({"bound": list(bound)}).findings()[0]
    assert row.verdict == "bad"
    assert "falls" in row.why
    assert "learning rate" in row.remedy


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_convergence_has_at_most_one_false_positive_in_twenty(correlation: float) -> None:
    alarms = [
        any(
            f.verdict in ("warning", "bad")
            for f in convergence({"bound": noise(2000, seed, correlation)}).findings()
        )
        for seed in range(200)
    ]
    assert np.mean(alarms) <= 0.05


def test_spread_of_restarts_is_graded() -> None:
    flat = {"bound": noise(500, 1)}
    assert convergence(flat, [-1.0, -1.01, -1.02]).findings()[2].verdict == "good"
    assert convergence(flat, [-1.0, -1.05, -3.0]).findings()[2].verdict == "warning"
    assert convergence(flat, [-1.0, -2.5, -3.0]).findings()[2].verdict == "bad"


@pytest.mark.parametrize(
    ("low", "rows", "errors", "verdict", "text"),
    [
        ([0.092], 150, (), "good", "9 of 10 reached the optimum; 1 is 13.8 nats lower"),
        ([0.092] * 3, 150, (), "warning", "7 of 10 reached the optimum; 3 are 13.8 to 13.8 nats"),
        ([0.02] * 9, 10_000, (), "bad", "1 of 10 reached the optimum; 9 are 200 to 200 nats"),
        ([0.01], 150, (), "good", "10 of 10 reached the optimum"),
        ([0.02] * 9, 10_000, (0.01,) * 10, "good", "10 of 10 reached the optimum"),
    ],
)
def test_restarts_are_judged_by_nats_of_all_rows_and_errors(
    low: list[float], rows: int, errors: tuple[float, ...], verdict: str, text: str
) -> None:
    bounds = (*[-2.0] * (10 - len(low)), *(-2.0 - d for d in low))
    row = spread_finding(Restarts(bounds, errors=errors, rows=rows))
    assert row.verdict == verdict
    assert row.why.startswith(text)
    assert row.value == sum(Restarts(bounds, errors=errors, rows=rows).reached_best)


def test_r_hat_that_is_high_without_consequence_is_not_good() -> None:
    rows = convergence(
        {"bound": noise(500, 1)},
        [-10.0, -10.0],
        [noise(20, 2, sd=1e-3), noise(20, 3, sd=1e-3) - np.float64(0.05)],
    )
    *_, row = rows.findings()
    assert row.verdict == "not applicable"
    assert row.value is None


def test_good_values_are_within_their_limit() -> None:
    for seed in range(50):
        result = convergence({"bound": noise(300, seed, 0.5)})
        for row in result.findings():
            limit = re.match(r"good ≤ ([\d.]+), ", row.threshold)
            if row.verdict == "good" and limit is not None:
                assert row.value is not None
                assert row.value <= float(limit[1])


@pytest.mark.parametrize(("distance", "verdict"), [(0.0, "good"), (1.0, "bad")])
def test_r_hat_over_restarts_detects_different_final_bounds(distance: float, verdict: str) -> None:
    means = [np.array(noise(20, s, sd=0.05)) + distance * s for s in range(3)]
    bounds = [-10.0, -10 + distance, -10 + 2 * distance]
    result = convergence({"bound": noise(500, 1)}, bounds, means)
    assert result.findings()[3].name == "R̂ of the bound over 3 restarts"
    assert result.findings()[3].verdict == verdict


def test_r_hat_separates_equal_from_shifted_chains() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(4, 500, 3))
    assert (r_hat(x) < 1.01).all()
    x[0, :, 1] += 3
    shifted = r_hat(x)
    assert shifted[1] > 1.3
    assert (shifted[[0, 2]] < 1.01).all()
    assert r_hat(np.ones((2, 10))) == 1.0


def test_convergence_rejects_short_and_non_finite_histories() -> None:
    with pytest.raises(CannotSayError, match="99 steps"):
        convergence({"bound": [0.0] * 99})
    with pytest.raises(CannotSayError, match="not finite"):
        convergence({"bound": [0.0] * 199 + [float("nan")]})


def test_monotone_bound_is_graded_by_its_remaining_gain() -> None:
    t = np.arange(40)
    bounds = list(-5 - 2 * 0.8**t)  # the remaining gain after t steps is 2 · 0.8^t
    done = monotone_convergence({"bound": bounds})
    halted = monotone_convergence({"bound": bounds[:6]})
    assert halted.remaining == pytest.approx(2 * 0.8**5)
    assert halted.findings()[0].verdict == "bad"
    assert done.remaining == pytest.approx(2 * 0.8**39)
    assert done.findings()[0].verdict == "good"
    assert len(monotone_convergence({"bound": bounds}, [-5.0, -5.5]).findings()) == 2


def test_monotone_convergence_rejects_falling_and_short_histories() -> None:
    with pytest.raises(CannotSayError, match="falls"):
        monotone_convergence({"bound": [-1.0, -2.0, -1.0]})
    with pytest.raises(CannotSayError, match="three"):
        monotone_convergence({"bound": [-1.0, -0.5]})
