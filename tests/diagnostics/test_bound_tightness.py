"""AIS and the sandwich against exact evidence."""

import math
from typing import Any

import pyro
import pytest
import torch
from diagnostic_cases import DiagnosticCases
from gaussian_pairs import ExactGuide, LinearGaussian
from pyro.distributions import Bernoulli, Beta, Gamma, Normal
from torch import Tensor

from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.diagnostics.amortization import require_amortized
from ppl_lvm.diagnostics.bound_tightness import sandwich, tightness
from ppl_lvm.diagnostics.unconstrained_density import UnconstrainedDensity
from ppl_lvm.particles.structure import analyze_pair
from ppl_lvm.posterior.simulation import simulate


def _tightness(width: float, error: float) -> Any:
    """Tightness with an "exact" log p(x) that is wrong by `error`."""
    model = LinearGaussian()
    model.log_likelihood = lambda x: model.exact(x) + error
    guide, x = ExactGuide(model, width), model.simulate(200, seed=3)[:30]
    return tightness(model, guide, x, particles=(1, 10), temperatures=25)


def _sandwich(shift: float, temperatures: int) -> Any:
    model = LinearGaussian()
    guide, x = ExactGuide(model, 1.0, shift), model.simulate(200, seed=3)[:50]
    return sandwich(model, guide, x, temperatures=temperatures)


CASES = {
    "tightness": DiagnosticCases(
        good=[lambda: _tightness(1.0, 0.0)],
        faulty=[lambda: _tightness(0.3, 0.0), lambda: _tightness(1.0, 1.0)],
    ),
    "sandwich": DiagnosticCases(
        good=[lambda: _sandwich(0.0, 30)], faulty=[lambda: _sandwich(3.0, 2)]
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("width", "shift"), [(1.0, 0.0), (0.5, 0.5), (2.0, 1.0)])
def test_annealing_meets_the_exact_evidence(
    linear: Any, exact_guide: Any, width: float, shift: float
) -> None:
    x = linear.simulate(40)
    guide = exact_guide(linear, width, shift)
    result = tightness(linear, guide, x, particles=(1, 10), chains=8)
    assert result.annealed is not None
    assert abs(result.annealed.value - float(linear.exact(x).mean())) < 0.05
    assert 0.6 < result.acceptance < 0.95


@pytest.mark.slow
def test_sandwich_of_a_slightly_wrong_guide_is_narrow(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(60)
    result = sandwich(linear, exact_guide(linear, 0.7, 0.3), x)
    assert result.gap < 0.1
    assert result.findings()[0].verdict == "good"


@pytest.mark.slow
def test_sandwich_contains_the_exact_evidence_of_its_simulated_data(
    linear: Any, exact_guide: Any
) -> None:
    x = linear.simulate(60)
    result = sandwich(linear, exact_guide(linear, 0.6, 0.5), x, seed=3)
    with isolated_rng(3):
        require_amortized(
            linear, exact_guide(linear), (x,), analyze_pair(linear, exact_guide(linear), (x,), {})
        )
        _, (simulated,) = simulate(linear, x)
    exact = float(linear.exact(simulated).mean())
    assert abs(result.lower.value - exact) < 0.05
    assert abs(result.upper.value - exact) < 0.05


def test_too_few_temperatures_leave_a_wide_sandwich(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(60)
    result = sandwich(linear, exact_guide(linear, 0.1, 2.0), x, temperatures=2, chains=1)
    assert result.findings()[0].verdict == "bad"
    assert result.lower.value < result.upper.value


def test_elbo_gap_equals_the_kl_divergence_and_is_graded(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(40)
    linear.log_likelihood = linear.exact
    narrow = tightness(
        linear, exact_guide(linear, 0.1), x, particles=(1, 1000), temperatures=20, chains=2
    )
    elbo = narrow.bounds[1]
    divergence = 2 * (0.1**2 / 2 - 0.5 - math.log(0.1))  # KL(N(0, .01) ‖ N(0, 1)), D = 2
    gap, _ = narrow.gap()
    assert abs(gap - divergence) < 5 * elbo.monte_carlo_error
    assert narrow.findings()[0].verdict == "bad"
    exact = tightness(linear, exact_guide(linear), x, particles=(1, 10), temperatures=10, chains=2)
    assert [f.verdict for f in exact.findings()] == ["good", "good"]


def test_importance_weighted_bounds_rise(linear: Any, exact_guide: Any) -> None:
    x = linear.simulate(40)
    bounds = tightness(linear, exact_guide(linear, 0.5), x, temperatures=5, chains=2).bounds
    values = [bounds[K].value for K in sorted(bounds)]
    assert values == sorted(values)
    assert values[-1] - values[0] > 0.3


def test_constrained_global_latent_is_annealed_in_its_unconstrained_space() -> None:
    x = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])

    def model(x: Tensor) -> None:
        p = pyro.sample("p", Beta(1.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Bernoulli(p), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("p", Beta(2.0, 2.0))

    result = tightness(model, guide, x, particles=(1, 100), chains=16, temperatures=50)
    assert result.annealed is not None
    exact = math.lgamma(5) + math.lgamma(2) - math.lgamma(7)  # log B(5, 2)
    error = result.annealed.monte_carlo_error
    assert abs(result.annealed.value - exact / 5) < 0.002 + 5 * error


def test_unconstrained_density_inverts_its_flattening_and_matches_the_evidence(
    linear: Any, exact_guide: Any
) -> None:
    x = linear.simulate(7)
    density = UnconstrainedDensity(linear, exact_guide(linear), x)
    u = density.draw(3)
    assert u.shape == (3, 7, 2)
    values, _ = density.values(u)
    torch.testing.assert_close(density.flatten(values), u)
    log_p, log_q = density.densities(u)
    torch.testing.assert_close(
        (log_p - log_q).double(), linear.exact(x).expand(3, 7), atol=1e-4, rtol=0
    )


def test_unconstrained_density_includes_the_jacobian() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Gamma(2.0, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Gamma(torch.full((len(x),), 2.0), 1.0))

    density = UnconstrainedDensity(model, guide, torch.zeros(2))
    grid = torch.linspace(-8, 5, 4001)
    _, log_q = density.densities(grid[:, None, None].expand(-1, 2, 1))
    torch.testing.assert_close(torch.trapezoid(log_q.exp(), grid, dim=0), torch.ones(2))


def test_unconstrained_density_rejects_discrete_guide_sites_by_name() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", Bernoulli(0.5))
            pyro.sample("x", Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Bernoulli(torch.full((len(x),), 0.5)))

    x = torch.zeros(4)
    with pytest.raises(CannotSayError, match="discrete site 'z'"):
        UnconstrainedDensity(model, guide, x)
    result = tightness(model, guide, x, particles=(1, 10))
    assert result.findings()[1].verdict == "unknown"


def test_sandwich_rejects_guides_that_do_not_read_the_data() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Normal(mu, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mu", Normal(0.3, 0.2))

    with pytest.raises(CannotSayError, match="does not read the data"):
        sandwich(model, guide, torch.zeros(10))


@pytest.mark.slow
def test_bound_of_several_particles_is_judged_by_its_own_gap(linear: Any, exact_guide: Any) -> None:
    """A guide that is too wide has a loose ELBO; IWAE, which was trained, is tight."""
    from pyro.infer import Trace_ELBO

    from ppl_lvm.diagnostics.base import Context
    from ppl_lvm.diagnostics.bound_tightness import TIGHTNESS
    from ppl_lvm.diagnostics.diagnosis import _not_followed
    from ppl_lvm.estimators import IWAE
    from ppl_lvm.programs.pair import ModelGuidePair

    guide, x = exact_guide(linear, width=2.5), linear.simulate(40)
    rows = {}
    for name, objective in (("ELBO", Trace_ELBO()), ("IWAE", IWAE(num_particles=50))):
        context = Context(
            ModelGuidePair(linear, guide, objective), {"bound": []}, (x,), temperatures=5
        )
        rows[name] = TIGHTNESS.run(context).findings()[0]
        followed = _not_followed(
            rows[name].remedy or "Or, or train with IWAE or Rényi bounds", context
        )
        assert ("train with IWAE" in followed) == (name == "ELBO")
    assert "− ELBO" in rows["ELBO"].name
    assert "− IWAE-50" in rows["IWAE"].name
    assert rows["ELBO"].verdict != "good"
    assert rows["IWAE"].verdict == "good"
