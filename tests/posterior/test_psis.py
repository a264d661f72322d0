"""PSIS against ArviZ; leave-one-out of a conjugate model.

These tests do not import torch: they also run in an environment of ArviZ 1.x (see
test_arviz_container.py).
"""

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import genpareto, norm

from ppl_lvm.posterior.psis import MIN_DRAWS, fit_pareto, good_k, loo, pareto_quantile, psis


def _rows(k: float, num_draws: int = 4000, num_rows: int = 50, seed: int = 0) -> Any:
    """Log-ratios whose tail is generalised Pareto with shape k."""
    draw = np.random.default_rng(seed)
    return np.log(genpareto.rvs(k, size=(num_rows, num_draws), random_state=draw) + 1)


@pytest.mark.parametrize("k", [-0.3, 0.0, 0.3, 0.7, 1.2])
def test_k_hat_estimates_the_shape_of_the_tail(k: float) -> None:
    k_hat = psis(_rows(k))[1]
    expected = (190 * k + 5) / 200  # shrunk to 1/2 by ten observations, 190 in the tail
    assert abs(k_hat.mean() - expected) < 5 * k_hat.std() / np.sqrt(len(k_hat)) + 0.02


def test_psis_normalizes_weights_and_preserves_their_order() -> None:
    log_ratio = _rows(0.6, num_draws=500)
    log_w, _ = psis(log_ratio)
    assert np.allclose(logsumexp(log_w, axis=1), 0)
    for before, after in zip(log_ratio, log_w, strict=True):
        assert (np.diff(after[before.argsort()]) >= -1e-12).all()


def test_psis_changes_neither_the_body_nor_the_input() -> None:
    log_ratio = _rows(0.6, num_draws=500, num_rows=3)
    before = log_ratio.copy()
    log_w, _ = psis(log_ratio)
    assert np.array_equal(log_ratio, before)
    body = log_ratio.argsort(axis=1)[:, :-68]  # the tail is ⌈3 √500⌉ = 68
    shift = np.take_along_axis(log_w - log_ratio, body, 1)
    assert np.allclose(shift, shift[:, :1])
    tail = log_ratio.argsort(axis=1)[:, -68:]
    assert not np.allclose(np.take_along_axis(log_w - log_ratio, tail, 1), shift[:, :1])


def test_psis_treats_rows_independently() -> None:
    log_ratio = _rows(0.5, num_draws=300, num_rows=6)
    log_ratio[2] = np.nan
    log_ratio[4] = 1.0
    batched = psis(log_ratio.reshape(2, 3, 300))
    for n, row in enumerate(log_ratio):
        single = psis(row)
        assert np.array_equal(single[0], batched[0].reshape(6, 300)[n], equal_nan=True)
        assert single[1] == batched[1].reshape(6)[n]


def test_psis_is_invariant_to_a_constant() -> None:
    log_ratio = _rows(0.5, num_draws=300)
    for shift in (-1e4, 1e4):
        log_w, k = psis(log_ratio + shift)
        assert np.allclose(k, psis(log_ratio)[1], atol=1e-8)
        assert np.allclose(log_w, psis(log_ratio)[0], atol=1e-8)


def test_psis_of_equal_ratios_and_of_few_draws() -> None:
    draw = np.random.default_rng(0)
    few = draw.normal(size=MIN_DRAWS - 1)
    log_w, k = psis(np.full(200, 3.0))
    assert k == -np.inf
    assert np.allclose(log_w, -np.log(200))
    log_w, k = psis(few)
    assert k == np.inf
    assert np.allclose(log_w, few - logsumexp(few))
    assert np.isfinite(psis(draw.normal(size=MIN_DRAWS))[1])


def test_psis_of_ratios_that_are_not_finite() -> None:
    usual = np.random.default_rng(0).normal(size=200)
    for bad in (np.nan, np.inf):
        row = usual.copy()
        row[3] = bad
        log_w, k = psis(row)
        assert k == np.inf
        assert np.isnan(log_w).all()
    log_w, k = psis(np.full(200, -np.inf))
    assert k == np.inf
    row = usual.copy()
    row[:50] = -np.inf  # outside of the support: weight 0, and the tail is unchanged
    log_w, k = psis(row)
    assert np.isfinite(k)
    assert (np.exp(log_w[:50]) == 0).all()


def test_psis_of_tied_and_of_tiny_ratios() -> None:
    two_values = np.where(np.arange(200) < 100, 0.0, -1.0)  # bounded: the largest is common
    assert psis(two_values)[1] == -np.inf
    tied = np.zeros(200)
    tied[:3] = 1.0  # three ratios above a tie are no tail
    assert psis(tied)[1] == np.inf
    usual = np.random.default_rng(0).normal(size=200)
    assert np.isfinite(psis(1e-9 * usual)[1])


def test_psis_rejects_arrays_without_draws() -> None:
    with pytest.raises(ValueError, match="S draws"):
        psis(np.zeros((3, 0)))


def test_good_k_rises_with_the_number_of_draws() -> None:
    assert good_k(100) == pytest.approx(0.5)
    assert good_k(10**6) == 0.7


def test_pareto_fit_and_quantile_match_scipy() -> None:
    p = np.linspace(0.01, 0.99, 5)
    k, sigma = np.array([-0.5, 0.0, 0.8]), np.array([2.0, 1.0, 3.0])
    expected = np.stack([genpareto.ppf(p, c, scale=s) for c, s in zip(k, sigma, strict=True)])
    assert np.allclose(pareto_quantile(p, k, sigma), expected)
    excess = np.sort(genpareto.rvs(0.4, scale=2, size=(1, 50_000), random_state=0))
    k_hat, sigma_hat = fit_pareto(excess)
    assert k_hat[0] == pytest.approx(0.4, abs=0.03)
    assert sigma_hat[0] == pytest.approx(2.0, abs=0.06)


def test_psis_equals_arviz() -> None:
    """S = 900: ArviZ 0.23 rounds the length of the tail up and 1.x down, here with one result."""
    pytest.importorskip("arviz", reason="ArviZ is not installed", exc_type=ImportError)
    log_ratio = np.concatenate([_rows(k, 900, 10) for k in (-0.3, 0.3, 0.9)])
    log_w, k = psis(log_ratio)
    expected = _arviz_psis(log_ratio)
    assert np.allclose(k, expected[1], rtol=0, atol=1e-9)
    assert np.allclose(log_w, expected[0], rtol=0, atol=1e-9)


def _arviz_psis(log_ratio: Any) -> Any:
    import arviz as az

    if hasattr(az, "psislw"):
        return az.psislw(log_ratio)
    array_stats = import_module("arviz_stats.base").array_stats
    return array_stats.psislw(-log_ratio, axis=-1)


# Leave-one-out: x_i ~ N(θ, 1), θ ~ N(0, 10²), N = 30.


def _conjugate(shift: float = 0.0, widen: float = 1.0) -> tuple[Any, Any, Any, float, Any]:
    """Draws from q = N(posterior mean + shift, (widen · posterior sd)²) and the exact elpd."""
    draw = np.random.default_rng(1)
    x = draw.normal(1.0, 1.0, size=30)
    variance = 1 / (30 + 1 / 100)
    mean, sd = variance * x.sum() + shift, widen * variance**0.5
    theta = draw.normal(mean, sd, size=4000)
    l = norm.logpdf(x, theta[:, None], 1.0)
    log_p = l.sum(axis=1) + norm.logpdf(theta, 0, 10)
    log_q = norm.logpdf(theta, mean, sd)
    variance_without = 1 / (29 + 1 / 100)
    exact = norm.logpdf(x, variance_without * (x.sum() - x), np.sqrt(1 + variance_without))
    return l, log_p, log_q, exact.sum(), exact


def test_loo_of_posterior_draws_meets_the_exact_value() -> None:
    l, log_p, log_q, exact, pointwise = _conjugate()
    for result in (loo(l), loo(l, log_p, log_q)):
        assert result.elpd == pytest.approx(exact, abs=0.03)
        assert np.allclose(result.elpd_i, pointwise, atol=0.03)
        assert (result.k < result.good_k).all()
        assert result.p == pytest.approx(1.0, abs=0.35)
        assert result.se == pytest.approx(np.sqrt(30) * pointwise.std(ddof=1), abs=0.02)


def test_loo_corrects_for_a_wrong_q_only_with_log_q() -> None:
    l, log_p, log_q, exact, _ = _conjugate(shift=0.1, widen=1.3)
    assert loo(l, log_p, log_q).elpd == pytest.approx(exact, abs=0.05)
    assert abs(loo(l).elpd - exact) > 0.2  # q is treated as the posterior


def test_loo_of_a_single_row_has_no_standard_error() -> None:
    l, log_p, log_q, _, _ = _conjugate()
    assert np.isnan(loo(l[:, :1], log_p, log_q).se)


def test_loo_rejects_incomplete_or_misshapen_densities() -> None:
    l, log_p, log_q, _, _ = _conjugate()
    with pytest.raises(ValueError, match="or neither"):
        loo(l, log_p)
    with pytest.raises(ValueError, match="4000 draws"):
        loo(l, log_p[:3], log_q[:3])
    with pytest.raises(ValueError, match=r"\(S, N\)"):
        loo(log_p)
