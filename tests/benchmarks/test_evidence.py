"""Benchmark of evidence estimates on a mixture."""

from pathlib import Path

import pytest
import torch

from ppl_lvm.benchmarks import evidence


def test_query_point_has_posterior_probability_076() -> None:
    assert evidence.posterior(evidence.query_point()).item() == pytest.approx(0.76, abs=1e-12)


def test_elbo_and_kl_sum_to_log_evidence() -> None:
    x = evidence.query_point()
    lam = torch.linspace(0, 1, 101, dtype=torch.float64)
    elbo, exact = evidence.elbo(x, lam), evidence.log_joint(x).logsumexp(-1)
    torch.testing.assert_close(elbo + evidence.divergence(x, lam), exact.expand(101))
    assert lam[elbo.argmax()].item() == pytest.approx(0.76)
    other = evidence.MEANS[1]  # wrong: the KL to the posterior of another point
    assert not torch.allclose(elbo + evidence.divergence(other, lam), exact)


def test_posterior_proposal_has_no_variance_unlike_prior(tmp_path: Path) -> None:
    result = evidence.run(smoke=True, directory=tmp_path)
    for row in result["rows"]:
        if row["proposal"] == "posterior":
            assert row["sd, nats"] < 1e-12
            assert row["mean of log p̂(x), nats"] == pytest.approx(result["log_evidence"])
        elif row["particles"] <= 10:
            assert row["sd, nats"] > 0.05
    assert result["largest_gap"] < 1e-12
