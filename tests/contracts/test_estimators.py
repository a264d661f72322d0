"""Contract of every estimator; deliberately wrong estimators fail it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ppl_lvm.estimators as estimators
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles import Particles
from ppl_lvm.testing import check_estimator
from ppl_lvm.testing.dependent_programs import NeighborProgram, SelectedLikelihoodGaussianProgram
from ppl_lvm.testing.estimator_contract import (
    CHECKS,
    check_captured_steps,
    check_expected_gradient,
    check_joint_weights,
    check_masked_rows,
    check_plate_scaling,
)
from ppl_lvm.testing.exact_programs import (
    BernoulliProgram,
    EnumeratedSiteProgram,
    GaussianProgram,
    MixedSitesProgram,
)

CLASSES = [getattr(estimators, name) for name in estimators.__all__]
# One per kind: rows, reparameterized and discrete sites, enumerated sites, dependent rows.
FEW_PROGRAMS = (
    BernoulliProgram,
    MixedSitesProgram,
    EnumeratedSiteProgram,
    NeighborProgram,
    GaussianProgram,
    SelectedLikelihoodGaussianProgram,
)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_estimator_has_the_expected_gradient_on_a_few_programs(cls: type[Estimator]) -> None:
    check_expected_gradient(cls(), FEW_PROGRAMS)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(
            c,
            marks=[pytest.mark.slow]
            if c in (check_captured_steps, check_expected_gradient)
            else [],
        )
        for c in CHECKS
    ],
    ids=lambda c: c.__name__,
)
def test_estimator_passes_check(cls: type[Estimator], check: Callable[[Estimator], None]) -> None:
    check(cls())


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [estimators.Renyi(alpha=-0.5), estimators.CUBO(n=1.5)])
def test_estimator_instance_has_the_expected_gradient(estimator: Estimator) -> None:
    check_expected_gradient(estimator)


class BaselineWithOwnWeight(estimators.LeaveOneOut):
    """The baseline is the mean of all weights, including the particle's."""

    def surrogate(self, particles: Particles) -> Tensor:
        w = particles.log_w.detach()
        pathwise = particles.log_p - particles.log_q_path
        if particles.score is None:
            return pathwise.mean(0)
        return (pathwise + (w - w.mean(0)) * particles.score).mean(0)


class RenyiWithoutScoreTerm(estimators.Renyi):
    """Rényi's K-sample score term omitted, as in Pyro."""

    def surrogate(self, particles: Particles) -> Tensor:
        v = ((1 - self.alpha) * particles.log_w.detach()).softmax(0)
        factor = self.alpha / (1 - self.alpha)
        score = torch.zeros(()) if particles.score is None else particles.score
        return (v * (particles.log_p + factor * score)).sum(0)


class ScaleInside(estimators.VIMCO):
    """N/B multiplies the log-weights instead of the bound."""

    def surrogate(self, particles: Particles) -> Tensor:
        s = particles.scale
        inside = Particles(s * particles.log_p, s * particles.log_q, particles.score)
        return super().surrogate(inside) / s


class PathwiseOnly(estimators.VIMCO):
    """Only the gradient through log-weights, which is wrong for discrete draws."""

    def surrogate(self, particles: Particles) -> Tensor:
        return self.bound(particles)


class StickingInsideIWAE(estimators.IWAE):
    """The score term omitted inside the log-mean-exp, where its mean is not zero."""

    def surrogate(self, particles: Particles) -> Tensor:
        v = particles.log_w.detach().softmax(0)
        return (v * (particles.log_p - particles.log_q_at_fixed_parameters)).sum(0)


class HalvedBound(estimators.LeaveOneOut):
    """The value is half the ELBO."""

    def bound(self, particles: Particles) -> Tensor:
        return super().bound(particles) / 2


class LargestWeightAsBound(estimators.VRMax):
    """Declares a bound although E[max] exceeds log p(x)."""

    is_bound = True  # type: ignore[assignment]


class FalselyBiased(estimators.LeaveOneOut):
    """Declares a bias that it does not have."""

    unbiased = False


class FalselyUnbiased(estimators.ThermodynamicELBO):
    """Hides the bias of self-normalization."""

    unbiased = True


class AnyParticles(estimators.LeaveOneOut):
    """Accepts K = 0."""

    def __init__(self, num_particles: int = 2, vectorize_particles: bool | None = None) -> None:
        super().__init__(max(2, int(num_particles)), vectorize_particles)


class AnySites(estimators.IWAE):
    """Accepts discrete sites despite requires = "reparameterized"."""

    def validate(self, structure: Any) -> None:
        pass


class SeesMaskedRows(estimators.LeaveOneOut):
    """The value depends on the draws of masked rows."""

    def bound(self, particles: Particles) -> Tensor:
        score = 0.0 if particles.score is None else particles.score.detach()
        return (particles.log_w + score).mean(0)


class FalselyLinear(estimators.VIMCO):
    """Declares is_linear although the bound is a log-mean-exp."""

    is_linear = True


class NoEnergyWarning(estimators.VIMCO):
    """Does not warn about N/B inside a joint log-weight."""

    def _warn_of_energy_approximation(self, particles: Particles) -> None:
        pass


class UnsavedAverage(estimators.DecayingAverageBaseline):
    """The average is lost in state_dict."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        return {name: torch.zeros_like(value) for name, value in state.items()}


class Unpicklable(estimators.LeaveOneOut):
    """Holds a function that pickle rejects."""

    def __init__(self, num_particles: int = 2, vectorize_particles: bool | None = None) -> None:
        super().__init__(num_particles, vectorize_particles)
        self.baseline = lambda w: w

    def __deepcopy__(self, memo: Any) -> "Unpicklable":
        return Unpicklable(self.num_particles)


class CountsCalls(estimators.LeaveOneOut):
    """The value depends on the number of calls."""

    calls = 0

    def bound(self, particles: Particles) -> Tensor:
        type(self).calls += 1
        return super().bound(particles) + 0.1 * type(self).calls


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (BaselineWithOwnWeight, "declares `unbiased`, but E.gradient. differs"),
        (RenyiWithoutScoreTerm, "declares `unbiased`, but E.gradient. differs"),
        (ScaleInside, "declares `unbiased`, but E.gradient. differs"),
        (PathwiseOnly, "declares `unbiased`, but E.gradient. differs"),
        (StickingInsideIWAE, "declares `unbiased`, but E.gradient. differs"),
        (HalvedBound, "E.bound. is .* but the target 'ELBO' is"),
        (LargestWeightAsBound, "crosses log p"),
        (FalselyBiased, "declares a bias, but"),
        (FalselyUnbiased, "declares `unbiased`, but"),
        (AnyParticles, "num_particles=1 is accepted"),
        (AnySites, "site 'z' .Bernoulli. is accepted"),
        (SeesMaskedRows, "E.bound. is|value of a masked row"),
        (FalselyLinear, "declares `is_linear`, but"),
        (UnsavedAverage, "a copy by state_dict continues with another"),
        (Unpicklable, "cannot be pickled"),
        (CountsCalls, "is not the sum of the bound"),
    ],
)
def test_wrong_estimator_fails_with_the_fault(wrong: type[Estimator], message: str) -> None:
    with pytest.raises(AssertionError, match=rf"{wrong.__name__}: .*({message})"):
        check_estimator(wrong)


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (check_plate_scaling, ScaleInside, "gradient of 2 of 10 rows differs from 5 times"),
        (check_masked_rows, SeesMaskedRows, "with the value of a masked row"),
        (
            check_joint_weights,
            NoEnergyWarning,
            "0 warnings about N/B inside the log-weight, expected 1",
        ),
        (check_captured_steps, CountsCalls, "its step cannot be captured"),
    ],
)
def test_check_fails_on_its_wrong_estimator(
    check: Callable[[Estimator], None], wrong: type[Estimator], message: str
) -> None:
    with pytest.raises(AssertionError, match=rf"{wrong.__name__}: .*({message})"):
        check(wrong())


def test_pair_is_analyzed_once_per_kind_of_input() -> None:
    pair, calls = BernoulliProgram(2), []

    def model(x: Tensor) -> None:
        calls.append(len(x))
        pair.model(x)

    estimator = estimators.VIMCO(num_particles=2)
    estimator.loss(model, pair.guide, pair.x)
    num_calls = len(calls)
    estimator.loss(model, pair.guide, pair.x)
    estimator.loss(model, pair.guide, pair.x[:1])  # the number of rows is not part of the structure
    assert num_calls > 1
    assert len(calls) == num_calls + 2
