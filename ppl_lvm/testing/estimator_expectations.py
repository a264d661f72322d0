"""Checks of expected values and gradients of estimators.

Expectations are exact sums (`expectations.py`) if the estimator draws unmodified particles.
Otherwise they are means of draws, compared at five standard errors.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor

from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.estimators.parts.log_mean_exp import log_mean_exp
from ppl_lvm.testing import exact_programs as programs
from ppl_lvm.testing.dependent_programs import DEPENDENT, DEPENDENT_GAUSSIAN
from ppl_lvm.testing.expectations import (
    Expectation,
    double_precision,
    enumerate_expectation,
    flat_gradient,
    quadrature_expectation,
)

TOLERANCE = 1e-9  # of exact sums, relative to the largest entry


STANDARD_ERRORS = 5.0  # of means of draws


def _renyi(w: Tensor, alpha: float) -> Tensor:
    return w.mean(0) if alpha == 1 else log_mean_exp((1 - alpha) * w) / (1 - alpha)


# The declared target's value as a function of log-weights, (K, B) -> (B,). Other targets have no
# formula here; their value is compared with the evidence only.
FORMULAS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "ELBO": lambda w, _: w.mean(0),
    "IWAE": lambda w, _: log_mean_exp(w),
    "max": lambda w, _: w.max(0).values,
    "Rényi": lambda w, estimator: _renyi(w, estimator.alpha),
    "exp CUBO": lambda w, estimator: log_mean_exp(estimator.n * w) / estimator.n,
}


@contextmanager
def isolated() -> Iterator[None]:
    """Preserve the random state and the parameter store; ignore energy-approximation warnings."""
    with isolated_rng(0), pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is no bound on log p", UserWarning)
        yield


def copy_estimator(
    estimator: Estimator, num_particles: int, vectorize: bool | None = None
) -> Estimator:
    """An untrained copy with K particles."""
    copied = copy.deepcopy(estimator)
    copied.num_particles = num_particles
    copied.vectorize_particles = vectorize
    copied._warned = False
    copied.train()
    return copied.double() if torch.get_default_dtype() is torch.float64 else copied


def require(condition: bool, estimator: Estimator, fault: str) -> None:
    if not condition:
        raise AssertionError(f"{type(estimator).__name__}: {fault}")


def is_enumerable(estimator: Estimator) -> bool:
    return estimator.sampling == "particles" and estimator.requires == "any"


def _particle_counts(estimator: Estimator) -> list[int]:
    """K = 1, 2, 3 as far as accepted."""
    return [K for K in (1, 2, 3) if estimator.min_particles <= K]


def _expectation(estimator: Estimator, program: Any, vectorize: bool | None = None) -> Expectation:
    copied = copy_estimator(estimator, getattr(program, "num_particles", 2), vectorize)
    pair = program.model, program.guide
    parameters = list(program.parameters())
    if isinstance(program, programs.GaussianProgram):
        return quadrature_expectation(copied, *pair, 0.7, parameters, program.sites)
    return enumerate_expectation(copied, *pair, (program.x,), parameters, program.cases())


def check_value(estimator: Estimator) -> None:
    """E[bound] is the declared target; if `is_bound`, it does not cross log p(x)."""
    formula = FORMULAS.get(estimator.target.partition(";")[0])
    with isolated(), double_precision():
        if is_enumerable(estimator):
            program: Any = programs.CategoricalProgram(max(2, estimator.min_particles))
            x = program.x
        elif estimator.sampling == "particles":
            program, x = programs.GaussianProgram(), torch.tensor([0.7])
        else:
            return  # value and gradient are compared by draws
        result = _expectation(estimator, program)
        if formula is not None:
            expected = result.mean([formula(w, estimator) for w in result.log_w])
            require(
                math.isclose(result.bound, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE),
                estimator,
                f"E[bound] is {result.bound:.9g}, but the target {estimator.target!r} is "
                f"{expected:.9g}.",
            )
        if estimator.is_linear:
            expected = result.mean([w.mean(0) for w in result.log_w])
            require(
                math.isclose(result.bound, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE),
                estimator,
                f"declares `is_linear`, but E[bound] is {result.bound:.9g} and the mean of "
                f"log-weights is {expected:.9g}.",
            )
        if estimator.is_bound:
            evidence = float(_log_evidence(program, x).detach())
            gap = evidence - result.bound
            gap = -gap if estimator.is_upper_bound else gap
            require(
                gap > -TOLERANCE,
                estimator,
                f"E[bound] = {result.bound:.9g} crosses log p(x) = {evidence:.9g}, but `is_bound`.",
            )


def _log_evidence(program: Any, x: Tensor) -> Tensor:
    """log p(x) of the categorical program by a sum, of the Gaussian one in closed form."""
    if isinstance(program, programs.GaussianProgram):
        variance = 1 + program.shared**2
        mean = program.shared * program.theta[0] + program.theta[1]
        return Normal(mean, variance.sqrt()).log_prob(x).sum()
    theta = program.p["theta"]
    log_joint = Normal(theta[1, :3], 1.0).log_prob(x) + theta[0, :3].log_softmax(0)
    return log_joint.logsumexp(0)


def check_expected_gradient(
    estimator: Estimator, programs: Sequence[Callable[..., Any]] | None = None
) -> None:
    """E[gradient] is that of the objective if `unbiased`, and is not otherwise.

    `programs` are classes of `exact_programs` and `dependent_programs`; default: all of both.
    """
    if estimator.sampling != "particles":
        _check_gradient_by_draws(estimator)
        return
    errors = {}
    with isolated(), double_precision():
        for program in _programs(estimator, programs):
            result = _expectation(estimator, program)
            largest = float(result.target.abs().max())
            name = type(program).__name__
            require(largest > 1e-5, estimator, f"the target's gradient is zero on {name}.")
            errors[name] = float((result.gradient - result.target).abs().max()) / max(1.0, largest)
    if estimator.unbiased:
        name = max(errors, key=lambda key: errors[key])
        require(
            errors[name] < TOLERANCE,
            estimator,
            f"declares `unbiased`, but E[gradient] differs from the gradient of "
            f"{estimator.target!r} by {errors[name]:.2g} on {name}.",
        )
    else:
        require(
            max(errors.values()) > TOLERANCE,
            estimator,
            f"declares a bias, but E[gradient] is exact on {', '.join(errors)}. "
            "Declare unbiased = True.",
        )


def _programs(estimator: Estimator, classes: Sequence[Callable[..., Any]] | None) -> Iterator[Any]:
    """The exact programs that the class accepts, all with one to three particles."""

    def selected(*group: Any) -> list[Any]:
        return [program for program in group if classes is None or program in classes]

    if estimator.requires == "reparameterized":
        yield from (program() for program in selected(*programs.GAUSSIAN, *DEPENDENT_GAUSSIAN))
        return
    K = max(2, estimator.min_particles)
    for program in selected(*programs.ENUMERABLE, *DEPENDENT):
        if program.rows_are_arguments or not estimator.requires_batch_rows:
            yield program(K)
    for program in selected(programs.CategoricalProgram):
        yield from (program(k) for k in _particle_counts(estimator) if k != K)


def _check_gradient_by_draws(estimator: Estimator, calls: int = 40, copies: int = 50) -> None:
    """Compare the mean of draws with the exact ELBO on a program with two bits."""
    with isolated(), double_precision():
        program = programs.BitsProgram(1)
        reference = _expectation(_ElboReference(), program)
        copied = copy_estimator(estimator, max(2, estimator.min_particles))
        x, parameters = program.x.repeat(copies), program.parameters()
        copied.analyze(program.model, program.guide, (x,), {})
        draws = []
        for _ in range(calls):
            loss = copied.differentiable_loss(program.model, program.guide, x)
            draws.append(torch.cat([flat_gradient(loss, parameters), loss.detach()[None]]) / copies)
        sample = torch.stack(draws)
        target = torch.cat([reference.target, torch.tensor([-reference.bound])])
        error = (sample.mean(0) - target).abs() * math.sqrt(calls)
        deviation = error / sample.std(0).clamp_min(1e-12)
        deviation[error < 1e-9] = 0.0
    if estimator.unbiased:
        require(
            bool((deviation[:-1] < STANDARD_ERRORS).all()),
            estimator,
            f"declares `unbiased`, but the mean gradient is {float(deviation[:-1].max()):.1f} "
            "standard errors from that of the ELBO.",
        )
    else:
        require(
            bool((deviation[:-1] > STANDARD_ERRORS).any()),
            estimator,
            "declares a bias, but the mean gradient is that of the ELBO. Declare unbiased = True.",
        )
    if estimator.target == "ELBO":
        require(
            float(deviation[-1]) < STANDARD_ERRORS,
            estimator,
            f"the mean loss is {float(deviation[-1]):.1f} standard errors from the ELBO.",
        )


class _ElboReference(Estimator):
    """The mean of log-weights; only its target is used."""

    target = "ELBO"
    unbiased = False
    is_linear = True
    paper = ""

    def bound(self, particles: Any) -> Tensor:
        return particles.log_w.mean(0)

    def surrogate(self, particles: Any) -> Tensor:
        return self.bound(particles)


def check_particle_loop(estimator: Estimator) -> None:
    """A loop over particles has the same expected gradient as one vectorized pass."""
    if not is_enumerable(estimator):
        return
    with isolated(), double_precision():
        program = programs.BernoulliProgram(max(2, estimator.min_particles))
        loop = _expectation(estimator, program, vectorize=False)
        one_pass = _expectation(estimator, program, vectorize=True)
    error = float((loop.gradient - one_pass.gradient).abs().max())
    require(error < TOLERANCE, estimator, f"a loop over particles differs by {error:.2g}.")
