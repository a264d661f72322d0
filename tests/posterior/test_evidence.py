"""Log evidence against conjugate models, and its errors."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Beta, Categorical, MultivariateNormal, Normal
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.posterior.evidence import Evidence, log_evidence
from ppl_lvm.posterior.evidence_text import evidence_text
from ppl_lvm.programs.pair import ModelGuidePair

SUMMED = {"enumerate": "parallel"}
Program = Callable[[Tensor], None]


def _no_guide(x: Tensor) -> None:
    pass


def _evidence(model: Program, guide: Program, x: Tensor, **options: Any) -> Evidence:
    return log_evidence(ModelGuidePair(model, guide, Trace_ELBO()), x, **options)


def _mean(x: Tensor) -> None:
    """mu ~ N(0, 10²), x_n ~ N(mu, 1)."""
    mu = pyro.sample("mu", Normal(0.0, 10.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", Normal(mu, 1.0), obs=x)


def _mean_guide(train: Tensor) -> Program:
    """The posterior of `_mean` given the training rows."""
    precision = len(train) + 0.01

    def guide(x: Tensor) -> None:
        pyro.sample("mu", Normal(train.sum() / precision, precision**-0.5))

    return guide


def _hierarchy(x: Tensor) -> None:
    """mu ~ N(0, 10²), z_n ~ N(mu, .6²), x_n ~ N(z_n, .8²): as `_mean` without z."""
    mu = pyro.sample("mu", Normal(0.0, 10.0))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Normal(mu, 0.6))
        pyro.sample("x", Normal(z, 0.8), obs=x)


def _hierarchy_guide(train: Tensor) -> Program:
    """Draws of z wider than the posterior given mu."""
    precision = len(train) + 0.01

    def guide(x: Tensor) -> None:
        mu = pyro.sample("mu", Normal(train.sum() / precision, precision**-0.5))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(0.64 * mu + 0.36 * x, 0.6))

    return guide


def _exact(x: Tensor) -> float:
    """log p(x) of `_mean`."""
    covariance = torch.eye(len(x), dtype=torch.float64) + 100.0
    zeros = torch.zeros(len(x), dtype=torch.float64)
    return float(MultivariateNormal(zeros, covariance).log_prob(x.double()))


PAIRS = pytest.mark.parametrize(
    ("model", "guide"), [(_mean, _mean_guide), (_hierarchy, _hierarchy_guide)]
)


@PAIRS
def test_evidence_of_training_rows_is_the_joint_density(model: Program, guide: Any) -> None:
    x = 5.0 + torch.randn(40)
    evidence = _evidence(model, guide(x), x)
    assert evidence.kind == "joint"
    assert evidence.value == pytest.approx(
        _exact(x) / 40, abs=5 * evidence.monte_carlo_error + 1e-4
    )
    assert "joint log p(x) of all rows, Monte Carlo ±" in str(evidence)


@PAIRS
def test_evidence_of_new_rows_is_the_predictive_density(model: Program, guide: Any) -> None:
    torch.manual_seed(0)
    train, new = 5.0 + torch.randn(200), torch.zeros(3)
    evidence = _evidence(model, guide(train), new, training=lambda: (train,))
    together = (_exact(torch.cat([train, new])) - _exact(train)) / 3  # -13.124
    alone = _exact(torch.cat([train, new[:1]])) - _exact(train)  # -13.246
    assert evidence.kind == "predictive"
    assert evidence.value == pytest.approx(together, abs=5 * evidence.monte_carlo_error)
    assert evidence.monte_carlo_error < 0.1
    assert float(evidence.per_row.mean()) == pytest.approx(alone, abs=0.25)
    assert "log p(new rows | training rows)" in str(evidence)
    # As one more data set they have another density.
    assert abs(_exact(new) / 3 - evidence.value) > 5


def test_evidence_of_a_beta_binomial_is_joint_and_predictive() -> None:
    def model(x: Tensor) -> None:
        p = pyro.sample("p", Beta(2.0, 3.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Bernoulli(p), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("p", Beta(2.0 + 7.0, 3.0 + 13.0))

    def exact(ones: int, zeros: int) -> float:
        a, b = torch.tensor([2.0, 2.0 + ones]), torch.tensor([3.0, 3.0 + zeros])
        before, after = (torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)).tolist()
        return after - before

    train = (torch.arange(20) < 7).float()
    new = torch.tensor([1.0, 1.0, 1.0, 0.0])
    joint = _evidence(model, guide, train)
    assert joint.value == pytest.approx(exact(7, 13) / 20, abs=1e-4)  # equal weights
    predictive = _evidence(model, guide, new, training=lambda: (train,))
    assert predictive.value == pytest.approx(
        (exact(10, 14) - exact(7, 13)) / 4, abs=5 * predictive.monte_carlo_error
    )


def _change_point(x: Tensor) -> None:
    """The mean jumps from 0 to 3 at tau, one of 20 places."""
    tau = pyro.sample("tau", Categorical(torch.ones(20) / 20), infer=SUMMED)
    with pyro.plate("data", len(x), dim=-1):
        later = torch.arange(len(x)) >= tau
        pyro.sample("x", Normal(3.0 * later, 1.0), obs=x)


def test_predictive_density_uses_the_posterior_of_enumerated_sites() -> None:
    train, new = torch.cat([torch.randn(8), 3 + torch.randn(12)]), torch.randn(20)
    terms = torch.stack(
        [
            torch.stack([Normal(3.0 * (torch.arange(20) >= t), 1.0).log_prob(x) for t in range(20)])
            for x in (train, new)
        ]
    ).double()
    prior, old = -math.log(20), terms[0].sum(1)
    joint = _evidence(_change_point, _no_guide, train)
    assert joint.value == pytest.approx(float((prior + old).logsumexp(0)) / 20, abs=1e-5)
    assert "exact" in str(joint)
    evidence = _evidence(_change_point, _no_guide, new, training=lambda: (train,))
    weights = old.log_softmax(0)
    together = float((weights + terms[1].sum(1)).logsumexp(0)) / 20
    assert evidence.value == pytest.approx(together, abs=1e-5)
    per_row = (weights[:, None] + terms[1]).logsumexp(0)
    torch.testing.assert_close(evidence.per_row, per_row, rtol=0, atol=1e-5)
    assert evidence.num_draws == 1


def test_predictive_density_rejects_states_that_depend_on_the_rows() -> None:
    def model(x: Tensor) -> None:
        tau = pyro.sample("tau", Categorical(torch.ones(len(x)) / len(x)), infer=SUMMED)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(3.0 * (torch.arange(len(x)) >= tau), 1.0), obs=x)

    with pytest.raises(CannotSayError, match="'tau' has other states for these rows"):
        _evidence(model, _no_guide, torch.randn(5), training=lambda: (torch.randn(20),))


def _local(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", Normal(torch.zeros(20), 1.0).to_event(1))
        pyro.sample("x", Normal(z, 0.05).to_event(1), obs=x)


def _local_guide(width: float) -> Program:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(x / 1.0025, width * 0.05 / 1.0025**0.5).to_event(1))

    return guide


def _prior_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", Normal(torch.zeros(20), 1.0).to_event(1))


def test_evidence_far_from_the_model_has_no_error() -> None:
    x = 3 * torch.randn(6, 20)
    far = _evidence(_local, _prior_guide, x)
    assert far.share_bad == 1
    assert math.isnan(far.standard_error)
    assert math.isnan(far.to_json()["log_evidence_monte_carlo_error"])
    assert "±" not in str(far)
    assert "k̂" in str(far)
    assert "ESS" in str(far)
    exact = float(Normal(0.0, 1.0025**0.5).log_prob(x).sum() / 6)
    near = _evidence(_local, _local_guide(1.2), x)
    assert near.value == pytest.approx(exact, abs=5 * near.monte_carlo_error)
    assert str(near).count("±") == 2
    equal = _evidence(_local, _local_guide(1.0), x, num_particles=5)
    assert equal.value == pytest.approx(exact, abs=1e-3)
    assert str(equal).count("±") == 2  # equal weights need no k̂


def test_evidence_with_few_poor_rows_prints_no_monte_carlo_error() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            off = 0.5 * (torch.arange(len(x)) == 0).float()
            pyro.sample("z", Normal(x / 1.0025 + off[..., None], 0.05).to_event(1))

    evidence = _evidence(_local, guide, torch.randn(40, 20))
    assert evidence.share_bad == 1 / 40
    assert "k̂ > 0.7 for 2.5% of rows" in str(evidence)
    assert "Monte Carlo ±" not in str(evidence)


def test_evidence_of_joint_weights_with_high_k_hat_has_no_error() -> None:
    x = 5.0 + torch.randn(50)
    evidence = _evidence(_mean, _mean_guide(x[:10] - 0.8), x)
    assert evidence.joint_k_hat > 0.7
    assert "±" not in str(evidence)
    assert math.isnan(evidence.monte_carlo_error)


def test_evidence_of_new_rows_together_with_high_k_hat_is_that_of_each_alone() -> None:
    """400 new rows say more about mu than 20 training rows: no draw of q fits all of them."""
    train, new = torch.randn(20), 2 + torch.randn(400)
    evidence = _evidence(_mean, _mean_guide(train), new, training=lambda: (train,))
    precision = 20.01
    predictive = Normal(train.sum() / precision, (1 + 1 / precision) ** 0.5)
    assert evidence.kind == "pointwise"
    assert evidence.value == pytest.approx(
        float(predictive.log_prob(new).mean()), abs=5 * evidence.monte_carlo_error
    )
    assert evidence.value == pytest.approx(float(evidence.per_row.mean()))
    assert "log p(each new row | training rows)" in str(evidence)


def test_evidence_of_few_particles_has_no_monte_carlo_error() -> None:
    evidence = _evidence(_local, _local_guide(1.2), torch.randn(6, 20), num_particles=10)
    assert "fewer than 25 particles" in str(evidence)
    assert str(evidence).count("±") == 1  # over rows


def test_evidence_text_of_a_run_of_an_older_version_needs_no_new_entries() -> None:
    old = {
        "log_evidence": -1.5,
        "log_evidence_standard_error": 0.25,
        "log_evidence_monte_carlo_error": 0.01,
        "num_particles": 100,
    }
    text = "-1.5000 ± 0.2500 nats per row (training rows, particles: 100)"
    assert evidence_text(old, "training rows") == text
