"""Simulation-based calibration of exact and wrong guides."""

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from diagnostic_cases import DiagnosticCases
from gaussian_pairs import ExactGuide, LinearGaussian, mean_guide, mean_model, prior_guide
from pyro.distributions import Bernoulli, Categorical, MixtureSameFamily, Normal
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.diagnostics.calibration import chi_square_uniformity, sbc, vsbc


def _sbc(width: float) -> Any:
    model = LinearGaussian()
    return sbc(model, ExactGuide(model, width), model.simulate(200, seed=3))


def _vsbc(shift: float) -> Any:
    def refit(x: Tensor) -> Any:
        return mean_guide(shift=shift, center=float(x.sum()) / (len(x) + 1))

    return vsbc(mean_model, refit, torch.zeros(10), num_simulations=60)


CASES = {
    "calibration": DiagnosticCases(good=[lambda: _sbc(1.0)], faulty=[lambda: _sbc(0.3)]),
    "vsbc": DiagnosticCases(good=[lambda: _vsbc(0.0)], faulty=[lambda: _vsbc(0.5)]),
}


def test_exact_guide_is_calibrated(linear: Any, exact_guide: Any) -> None:
    result = sbc(linear, exact_guide(linear), linear.simulate(500), num_simulations=1000)
    assert [f.verdict for f in result.findings()] == ["good", "good"]
    assert set(result.ranks) == {"z[0]", "z[1]", "log p(x, z)"}
    assert len(result.ranks["z[0]"]) == 1000
    value, error = result.coverage(0.5)["z[0]"]
    assert abs(value - 0.5) < 5 * error


@pytest.mark.parametrize(
    ("width", "shift", "shape"),
    [(0.5, 0.0, "too narrow"), (1.5, 0.0, "too wide"), (1.0, 0.8, "too high")],
)
def test_sbc_detects_wrong_guides_and_names_the_error(
    linear: Any, exact_guide: Any, width: float, shift: float, shape: str
) -> None:
    x = linear.simulate(500)
    result = sbc(linear, exact_guide(linear, width, shift), x, num_simulations=1000)
    row = result.findings()[0]
    assert row.verdict == "bad"
    assert "log p(x, z)" in row.why or shape in row.why


@pytest.mark.slow
def test_sbc_detects_halved_scale_in_19_of_20_seeds_with_at_most_one_false_positive_in_20(
    linear: Any, exact_guide: Any
) -> None:
    x = linear.simulate(500)
    detected = false_positives = 0
    for seed in range(40):
        narrow = sbc(linear, exact_guide(linear, 0.5), x, num_simulations=500, seed=seed)
        detected += narrow.findings()[0].verdict == "bad"
        right = sbc(linear, exact_guide(linear), x, num_simulations=500, seed=1000 + seed)
        false_positives += any(f.verdict != "good" for f in right.findings())
    assert detected >= 38
    assert false_positives <= 2


def test_chi_square_uniformity_has_its_nominal_level() -> None:
    generator = np.random.default_rng(0)
    p = [chi_square_uniformity(generator.integers(0, 100, 300), 99) for _ in range(500)]
    assert abs(np.mean(np.array(p) < 0.05) - 0.05) < 5 * (0.05 * 0.95 / 500) ** 0.5


def test_sbc_breaks_ties_of_discrete_latents_at_random() -> None:
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


def test_sbc_of_a_global_latent_has_one_simulation_per_batch() -> None:
    x = torch.zeros(10)
    result = sbc(mean_model, mean_guide(), x, num_simulations=200)
    assert len(result.ranks["mu"]) == 200
    assert result.findings()[0].verdict == "good"
    narrow = sbc(mean_model, mean_guide(0.4), x, num_simulations=200)
    assert narrow.findings()[0].verdict == "bad"


def test_sbc_rejects_guides_that_do_not_read_the_data(linear: Any) -> None:
    with pytest.raises(CannotSayError, match="does not read the data"):
        sbc(linear, prior_guide, linear.simulate(20))


@pytest.mark.slow
def test_vsbc_detects_a_shifted_fit_and_not_a_narrow_one() -> None:
    def refit(shift: float, width: float) -> Any:
        def fitted(x: Tensor) -> Any:
            mean = x.sum() / 11 + shift

            def guide(x: Tensor) -> None:
                pyro.sample("mu", Normal(mean, width * 11**-0.5))

            return guide

        return fitted

    x = torch.zeros(10)
    assert vsbc(mean_model, refit(0.0, 1.0), x).findings()[0].verdict == "good"
    assert vsbc(mean_model, refit(0.3, 1.0), x).findings()[0].verdict == "bad"
    assert vsbc(mean_model, refit(0.0, 0.7), x).findings()[0].verdict == "good"


def _two_classes(x: Tensor) -> None:
    """c ~ Bernoulli, z | c ~ N(±1, 1), x | z ~ N(z, 1); c is summed out."""
    with pyro.plate("data", len(x), dim=-1):
        probs = torch.tensor([0.5, 0.5])
        c = pyro.sample("c", Categorical(probs), infer={"enumerate": "parallel"})
        z = pyro.sample("z", Normal(2.0 * c - 1.0, 1.0))
        pyro.sample("x", Normal(z, 1.0), obs=x)


def _two_classes_guide(x: Tensor) -> None:
    """p(z | x): given c it is N((x ± 1)/2, 1/2), and c has odds exp(x)."""
    means = torch.stack([(x - 1) / 2, (x + 1) / 2], -1)
    classes = Categorical(logits=torch.stack([-x / 2, x / 2], -1))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", MixtureSameFamily(classes, Normal(means, 0.5**0.5)))


def test_sbc_sums_enumerated_classes_out_of_the_truth_too() -> None:
    """The exact posterior is calibrated, in log p(x, z) as well, for either class."""
    x = torch.randn(500)
    result = sbc(_two_classes, _two_classes_guide, x, num_simulations=1000, num_draws=39)
    assert set(result.p_values) == {"z", "log p(x, z)"}
    assert min(result.p_values.values()) > 0.005
