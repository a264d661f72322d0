"""The two-component mixture: the identity of its curves, and which proposal spreads."""

from pathlib import Path

import pytest
import torch

from ppl_lvm.benchmarks import evidence


def test_query_point_has_the_posterior_of_the_figure() -> None:
    assert evidence.posterior(evidence.query_point()).item() == pytest.approx(0.76, abs=1e-12)


def test_elbo_and_divergence_sum_to_the_evidence() -> None:
    x = evidence.query_point()
    lam = torch.linspace(0, 1, 101, dtype=torch.float64)
    elbo, exact = evidence.elbo(x, lam), evidence.log_joint(x).logsumexp(-1)
    torch.testing.assert_close(elbo + evidence.divergence(x, lam), exact.expand(101))
    assert lam[elbo.argmax()].item() == pytest.approx(0.76)
    other = evidence.MEANS[1]  # the divergence to another point's posterior does not close the gap
    assert not torch.allclose(elbo + evidence.divergence(other, lam), exact)


def test_posterior_proposal_does_not_spread_and_the_prior_does(tmp_path: Path) -> None:
    result = evidence.run(smoke=True, directory=tmp_path)
    for row in result["rows"]:
        if row["proposal"] == "posterior":
            assert row["sd, nats"] < 1e-12
            assert row["mean of log p̂(x), nats"] == pytest.approx(result["log_evidence"])
        elif row["particles"] <= 10:
            assert row["sd, nats"] > 0.05
    assert result["largest_gap"] < 1e-12
