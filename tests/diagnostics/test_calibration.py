"""Simulation-based calibration: passes on the exact posterior, fails when its sd is halved."""

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Categorical, MixtureSameFamily, Normal
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.calibration import ecdf_band, sbc, uniformity, vsbc


def test_exact_guide_is_calibrated(linear: Any, exact_guide: Any) -> None:
    result = sbc(linear, exact_guide(linear), linear.simulate(500), num_simulations=1000)
    assert [f.verdict for f in result.findings()] == ["good", "good"]
    assert set(result.ranks) == {"z[0]", "z[1]", "log p(x, z)"}
    assert len(result.ranks["z[0]"]) == 1000
    value, error = result.coverage(0.5)["z[0]"]
    assert abs(value - 0.5) < 5 * error


@pytest.mark.parametrize(
    ("width", "shift", "said"),
    [(0.5, 0.0, "too narrow"), (1.5, 0.0, "too wide"), (1.0, 0.8, "too high")],
)
def test_wrong_guides_are_found_and_named(
    linear: Any, exact_guide: Any, width: float, shift: float, said: str
) -> None:
    x = linear.simulate(500)
    result = sbc(linear, exact_guide(linear, width, shift), x, num_simulations=1000)
    found = result.findings()[0]
    assert found.verdict == "bad"
    assert "log p(x, z)" in found.why or said in found.why


@pytest.mark.slow
def test_halved_scale_fails_in_95_of_100_seeds_and_the_exact_one_alarms_in_5(
    linear: Any, exact_guide: Any
) -> None:
    x = linear.simulate(500)
    failed = alarmed = 0
    for seed in range(100):
        narrow = sbc(linear, exact_guide(linear, 0.5), x, num_simulations=500, seed=seed)
        failed += narrow.findings()[0].verdict == "bad"
        right = sbc(linear, exact_guide(linear), x, num_simulations=500, seed=1000 + seed)
        alarmed += any(f.verdict != "good" for f in right.findings())
    assert failed >= 95
    assert alarmed <= 5


def test_uniformity_has_its_level() -> None:
    generator = np.random.default_rng(0)
    p = [uniformity(generator.integers(0, 100, 300), 99) for _ in range(500)]
    assert abs(np.mean(np.array(p) < 0.05) - 0.05) < 5 * (0.05 * 0.95 / 500) ** 0.5


def test_band_holds_uniform_ranks_as_a_whole_and_not_a_narrow_q() -> None:
    _, lower, upper = ecdf_band(200, 99)
    generator = np.random.default_rng(5)
    inside = []
    for _ in range(400):
        ranks = generator.integers(0, 100, 200)
        ecdf = np.searchsorted(np.sort(ranks), np.arange(1, 100), side="left") / 200
        inside.append(((ecdf >= lower) & (ecdf <= upper)).all())
    assert abs(np.mean(inside) - 0.95) < 0.03 + 5 * (0.05 * 0.95 / 400) ** 0.5
    extreme = np.where(generator.random(200) < 0.3, 0, generator.integers(0, 100, 200))
    ecdf = np.searchsorted(np.sort(extreme), np.arange(1, 100), side="left") / 200
    assert not ((ecdf >= lower) & (ecdf <= upper)).all()


def test_discrete_latents_are_ranked_by_fair_draws() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(0.3))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(x: Tensor, bias: float = 0.0) -> None:
        logit = torch.tensor(0.3).logit() + x - 0.5 + bias
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(logits=logit))

    x = torch.zeros(500)
    assert sbc(model, guide, x).findings()[0].verdict == "good"
    wrong = sbc(model, lambda x: guide(x, 1.5), x)
    assert wrong.findings()[0].verdict == "bad"


def test_amortized_global_latent_is_one_simulation_a_pass() -> None:
    def guide(x: Tensor, width: float = 1.0) -> None:
        pyro.sample("mu", Normal(x.sum() / 11, width * 11**-0.5))

    x = torch.zeros(10)
    result = sbc(_mean_model, guide, x, num_simulations=200)
    assert len(result.ranks["mu"]) == 200
    assert result.findings()[0].verdict == "good"
    narrow = sbc(_mean_model, lambda x: guide(x, 0.4), x, num_simulations=200)
    assert narrow.findings()[0].verdict == "bad"


def test_guide_that_does_not_read_the_data_cannot_say(linear: Any) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(CannotSayError, match="does not read the data"):
        sbc(linear, guide, linear.simulate(20))


def test_vsbc_sees_a_shifted_fit_and_not_a_narrow_one() -> None:
    def refit(shift: float, width: float) -> Any:
        def fitted(x: Tensor) -> Any:
            mean = x.sum() / 11 + shift

            def guide(x: Tensor) -> None:
                pyro.sample("mu", Normal(mean, width * 11**-0.5))

            return guide

        return fitted

    x = torch.zeros(10)
    assert vsbc(_mean_model, refit(0.0, 1.0), x).findings()[0].verdict == "good"
    assert vsbc(_mean_model, refit(0.3, 1.0), x).findings()[0].verdict == "bad"
    assert vsbc(_mean_model, refit(0.0, 0.7), x).findings()[0].verdict == "good"


def _mean_model(x: Tensor) -> None:
    mu = pyro.sample("mu", Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", Normal(mu, 1.0), obs=x)


def _two_kinds(x: Tensor) -> None:
    """c ~ Bernoulli, z | c ~ N(±1, 1), x | z ~ N(z, 1); c is summed out."""
    with pyro.plate("data", len(x), dim=-1):
        probs = torch.tensor([0.5, 0.5])
        c = pyro.sample("c", Categorical(probs), infer={"enumerate": "parallel"})
        z = pyro.sample("z", Normal(2.0 * c - 1.0, 1.0))
        pyro.sample("x", Normal(z, 1.0), obs=x)


def _posterior_of_two_kinds(x: Tensor) -> None:
    """p(z | x): given c it is N((x ± 1)/2, 1/2), and c has odds exp(x)."""
    means = torch.stack([(x - 1) / 2, (x + 1) / 2], -1)
    kinds = Categorical(logits=torch.stack([-x / 2, x / 2], -1))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", MixtureSameFamily(kinds, Normal(means, 0.5**0.5)))


def test_truths_too_have_their_classes_summed_out() -> None:
    """The exact posterior is calibrated, in log p(x, z) as well, whatever the class had been."""
    x = torch.randn(500)
    found = sbc(_two_kinds, _posterior_of_two_kinds, x, num_simulations=1000, num_draws=39)
    assert set(found.p_values) == {"z", "log p(x, z)"}
    assert min(found.p_values.values()) > 0.005
