"""Contract of gradient estimators.

    from ppl_lvm.testing import check_estimator
    check_estimator(MyEstimator)                    # or an instance: MyEstimator(alpha=0.2)

`CHECKS` lists the checks; each raises AssertionError with the class, the program and the fault.
Expectations are exact sums (`expectations.py`) if the estimator draws unmodified particles.
Otherwise they are means of draws, compared at five standard errors.
"""

import copy
import inspect
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.distributions import Bernoulli, Normal
from pyro.poutine import mask
from torch import Tensor

from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles.structure import Program
from ppl_lvm.programs.minibatch import ScaleDataPlate
from ppl_lvm.testing import exact_programs as programs
from ppl_lvm.testing.expectations import (
    Expectation,
    double_precision,
    enumerate_expectation,
    flat_gradient,
    quadrature_expectation,
)

TOLERANCE = 1e-9  # of exact sums, relative to the largest entry
STANDARD_ERRORS = 5.0  # of means of draws


def log_mean_exp(w: Tensor) -> Tensor:
    """log 1/K Σ_k exp w_k: (K, B) -> (B,)."""
    return w.logsumexp(0) - math.log(len(w))


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


def check_estimator(estimator: type[Estimator] | Estimator) -> None:
    """Run all `CHECKS` on an estimator class or instance.

    Raises:
        AssertionError: with the class, the check and the fault.
    """
    instance = estimator() if inspect.isclass(estimator) else estimator
    for check in CHECKS:
        check(instance)


@contextmanager
def _isolated() -> Iterator[None]:
    """Preserve the random state and the parameter store; ignore energy-approximation warnings."""
    with (
        isolated_rng(0),
        pyro.get_param_store().scope(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", ".* is no bound on log p", UserWarning)
        yield


def _copy(estimator: Estimator, num_particles: int, vectorize: bool | None = None) -> Estimator:
    """An untrained copy with K particles."""
    copied = copy.deepcopy(estimator)
    copied.num_particles = num_particles
    copied.vectorize_particles = vectorize
    copied._warned = False
    copied.train()
    return copied.double() if torch.get_default_dtype() is torch.float64 else copied


def _require(condition: bool, estimator: Estimator, fault: str) -> None:
    if not condition:
        raise AssertionError(f"{type(estimator).__name__}: {fault}")


def _is_enumerable(estimator: Estimator) -> bool:
    return estimator.sampling == "particles" and estimator.requires == "any"


def _particle_counts(estimator: Estimator) -> list[int]:
    """K = 1, 2, 3 as far as accepted."""
    return [K for K in (1, 2, 3) if estimator.min_particles <= K]


def _supported_program(estimator: Estimator) -> Any:
    gaussian = estimator.requires == "reparameterized"
    return programs.GaussianProgram() if gaussian else programs.BernoulliProgram()


def _expectation(estimator: Estimator, program: Any, vectorize: bool | None = None) -> Expectation:
    copied = _copy(estimator, getattr(program, "num_particles", 2), vectorize)
    pair = program.model, program.guide
    parameters = list(program.parameters())
    if isinstance(program, programs.GaussianProgram):
        return quadrature_expectation(copied, *pair, 0.7, parameters, program.sites)
    return enumerate_expectation(copied, *pair, (program.x,), parameters, program.cases())


def check_conditions(estimator: Estimator) -> None:
    """Conditions are class attributes of the right type."""
    cls = type(estimator)
    for name, kind in (("target", str), ("paper", str), ("unbiased", bool)):
        declared = isinstance(getattr(cls, name, None), kind) and getattr(cls, name) != ""
        _require(declared, estimator, f"`{name}` is not declared. Set it on the class.")
    accepted = ("any", "reparameterized", "bernoulli", "discrete")
    _require(cls.requires in accepted, estimator, f"`requires` is none of {accepted}.")
    if cls.requires != "any":
        _require(bool(cls.fallback), estimator, "`fallback` is not declared, but needed in errors.")
    _require(cls.min_particles >= 1, estimator, "`min_particles` is less than 1.")


def check_minimum_particles(estimator: Estimator) -> None:
    """Too few particles and fractions raise at construction."""
    cls: Any = type(estimator)
    for K, message in ((cls.min_particles - 1, "needs at least"), (2.5, "whole number")):
        try:
            cls(num_particles=K)
        except ValueError as error:
            named = message in str(error) and cls.__name__ in str(error)
            _require(named, estimator, f"num_particles={K} raises an unclear message: {error}")
        else:
            _require(False, estimator, f"num_particles={K} is accepted.")


def check_rejected_sites(estimator: Estimator) -> None:
    """Unsupported guide sites raise with the site and a remedy."""
    if estimator.requires == "any":
        return

    def pair(distribution: Any) -> tuple[Program, Program]:
        def model(x: Tensor) -> None:
            with pyro.plate("data", 2, dim=-1):
                z = pyro.sample("z", distribution)
                pyro.sample("x", Normal(z, 1.0), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", 2, dim=-1):
                pyro.sample("z", distribution)

        return model, guide

    discrete = estimator.requires == "reparameterized"
    distribution: Any = Bernoulli(0.5) if discrete else Normal(0.0, 1.0)
    site = "'z' (Bernoulli)" if discrete else "'z' (Normal)"
    with _isolated():
        copied = _copy(estimator, max(2, estimator.min_particles))
        try:
            copied.loss(*pair(distribution), torch.zeros(2))
        except ValueError as error:
            named = site in str(error) and "Use " in str(error)
            _require(named, estimator, f"the error does not name {site} and a remedy: {error}")
        else:
            _require(
                False, estimator, f"site {site} is accepted, but requires={copied.requires!r}."
            )


def check_value(estimator: Estimator) -> None:
    """E[bound] is the declared target; if `is_bound`, it does not cross log p(x)."""
    formula = FORMULAS.get(estimator.target.partition(";")[0])
    with _isolated(), double_precision():
        if _is_enumerable(estimator):
            program: Any = programs.CategoricalProgram(max(2, estimator.min_particles))
            x = program.x
        elif estimator.sampling == "particles":
            program, x = programs.GaussianProgram(), torch.tensor([0.7])
        else:
            return  # value and gradient are compared by draws
        result = _expectation(estimator, program)
        if formula is not None:
            expected = result.mean([formula(w, estimator) for w in result.log_w])
            _require(
                math.isclose(result.bound, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE),
                estimator,
                f"E[bound] is {result.bound:.9g}, but the target {estimator.target!r} is "
                f"{expected:.9g}.",
            )
        if estimator.is_linear:
            expected = result.mean([w.mean(0) for w in result.log_w])
            _require(
                math.isclose(result.bound, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE),
                estimator,
                f"declares `is_linear`, but E[bound] is {result.bound:.9g} and the mean of "
                f"log-weights is {expected:.9g}.",
            )
        if estimator.is_bound:
            evidence = float(_log_evidence(program, x).detach())
            gap = evidence - result.bound
            gap = -gap if estimator.is_upper_bound else gap
            _require(
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


def check_expected_gradient(estimator: Estimator) -> None:
    """E[gradient] is that of the objective if `unbiased`, and is not otherwise."""
    if estimator.sampling != "particles":
        _check_gradient_by_draws(estimator)
        return
    errors = {}
    with _isolated(), double_precision():
        for program in _programs(estimator):
            result = _expectation(estimator, program)
            largest = float(result.target.abs().max())
            name = type(program).__name__
            _require(largest > 1e-5, estimator, f"the target's gradient is zero on {name}.")
            errors[name] = float((result.gradient - result.target).abs().max()) / max(1.0, largest)
    if estimator.unbiased:
        name = max(errors, key=lambda key: errors[key])
        _require(
            errors[name] < TOLERANCE,
            estimator,
            f"declares `unbiased`, but E[gradient] differs from the gradient of "
            f"{estimator.target!r} by {errors[name]:.2g} on {name}.",
        )
    else:
        _require(
            max(errors.values()) > TOLERANCE,
            estimator,
            f"declares a bias, but E[gradient] is exact on {', '.join(errors)}. "
            "Declare unbiased = True.",
        )


def _programs(estimator: Estimator) -> Iterator[Any]:
    """All exact programs that the class accepts, with one to three particles."""
    if estimator.requires == "reparameterized":
        yield from (program() for program in programs.GAUSSIAN)
        return
    K = max(2, estimator.min_particles)
    for program in programs.ENUMERABLE:
        if program.rows_are_arguments or not estimator.requires_batch_rows:
            yield program(K)
    yield from (programs.CategoricalProgram(k) for k in _particle_counts(estimator) if k != K)


def _check_gradient_by_draws(estimator: Estimator, calls: int = 40, copies: int = 50) -> None:
    """Compare the mean of draws with the exact ELBO on a program with two bits."""
    with _isolated(), double_precision():
        program = programs.BitsProgram(1)
        reference = _expectation(_ElboReference(), program)
        copied = _copy(estimator, max(2, estimator.min_particles))
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
        _require(
            bool((deviation[:-1] < STANDARD_ERRORS).all()),
            estimator,
            f"declares `unbiased`, but the mean gradient is {float(deviation[:-1].max()):.1f} "
            "standard errors from that of the ELBO.",
        )
    else:
        _require(
            bool((deviation[:-1] > STANDARD_ERRORS).any()),
            estimator,
            "declares a bias, but the mean gradient is that of the ELBO. Declare unbiased = True.",
        )
    if estimator.target == "ELBO":
        _require(
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
    if not _is_enumerable(estimator):
        return
    with _isolated(), double_precision():
        program = programs.BernoulliProgram(max(2, estimator.min_particles))
        loop = _expectation(estimator, program, vectorize=False)
        one_pass = _expectation(estimator, program, vectorize=True)
    error = float((loop.gradient - one_pass.gradient).abs().max())
    _require(error < TOLERANCE, estimator, f"a loop over particles differs by {error:.2g}.")


def check_plate_scaling(estimator: Estimator) -> None:
    """Loss and gradient of a batch of B of N rows are N/B times those of the batch."""
    with _isolated(), double_precision():
        program, scaled = _supported_program(estimator), ScaleDataPlate(10)
        parameters = list(program.parameters())
        results = []
        for model, guide in (
            (program.model, program.guide),
            (scaled(program.model), scaled(program.guide)),
        ):
            copied = _copy(estimator, max(4, estimator.min_particles))
            copied.analyze(model, guide, (program.x,), {})
            pyro.set_rng_seed(1)
            loss = copied.differentiable_loss(model, guide, program.x)
            results.append((float(loss.detach()), flat_gradient(loss, parameters)))
    (loss, gradient), (scaled_loss, scaled_gradient) = results
    ratio = 10 / len(program.x)
    _require(
        math.isclose(scaled_loss, ratio * loss, rel_tol=TOLERANCE),
        estimator,
        f"the loss of 2 of 10 rows is {scaled_loss / loss:.6g} times that of the batch, not 5.",
    )
    error = float((scaled_gradient - ratio * gradient).abs().max())
    _require(
        error < TOLERANCE * max(1.0, float(scaled_gradient.abs().max())),
        estimator,
        f"the gradient of 2 of 10 rows differs from 5 times that of the batch by {error:.2g}.",
    )


def check_masked_rows(estimator: Estimator) -> None:
    """A masked row does not change the loss."""
    with _isolated(), double_precision():
        program = _supported_program(estimator)
        rows = torch.tensor([True, False])

        def masked(part: Program) -> Program:
            def run(x: Tensor) -> None:
                with mask(mask=rows):
                    part(x)

            return run

        model, guide = masked(program.model), masked(program.guide)
        losses = []
        for shift in (0.0, 1.0):
            copied = _copy(estimator, max(2, estimator.min_particles))
            x = program.x + shift * (~rows).to(program.x)
            copied.analyze(model, guide, (x,), {})
            copied.eval()
            pyro.set_rng_seed(1)
            losses.append(copied.loss(model, guide, x))
    _require(
        math.isclose(*losses, rel_tol=TOLERANCE),
        estimator,
        f"the loss changes from {losses[0]:.9g} to {losses[1]:.9g} with the value of a masked row.",
    )


def check_joint_weights(estimator: Estimator) -> None:
    """A nonlinear bound warns once if N/B is inside a joint log-weight."""
    if not _is_enumerable(estimator) or estimator.requires_batch_rows:
        return
    with isolated_rng(0), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program = programs.GlobalLatentProgram()
        copied = _copy(estimator, max(2, estimator.min_particles))
        for _ in range(2):
            copied.loss(program.model, program.guide, program.x)
    number = sum("is no bound on log p(x) here" in str(warning.message) for warning in caught)
    expected = 0 if estimator.is_linear else 1
    _require(
        number == expected,
        estimator,
        f"{number} warnings about N/B inside the log-weight, expected {expected} "
        f"(is_linear={estimator.is_linear}).",
    )


def check_captured_steps(estimator: Estimator) -> None:
    """Captured steps have the losses of eager steps."""
    from ppl_lvm.compiler import CannotCaptureError, CompiledSVI

    bits = estimator.requires != "reparameterized"
    prior: Any = Bernoulli(torch.full((2,), 0.4)) if bits else Normal(torch.zeros(2), 1.0)

    def model(x: Tensor) -> None:
        W = pyro.param("W", torch.full((2, 3), 0.3))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", Normal(z @ W, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        A = pyro.param("A", torch.full((3, 2), 0.2))
        with pyro.plate("data", len(x), dim=-1):
            q = Bernoulli(logits=x @ A) if bits else Normal(x @ A, 0.5)
            pyro.sample("z", q.to_event(1))

    losses = {}
    for engine in ("captured", "eager"):
        with _isolated():
            x = torch.randn(6, 3)
            pyro.set_rng_seed(0)
            copied = _copy(estimator, max(2, estimator.min_particles))
            svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.01}), copied, engine=engine)
            try:
                losses[engine] = [float(svi.step(x)) for _ in range(6)]
            except CannotCaptureError as error:
                raise AssertionError(
                    f"{type(estimator).__name__}: its step cannot be captured: {error}"
                ) from error
    pairs = zip(losses["captured"], losses["eager"], strict=True)
    _require(
        all(math.isclose(a, b, rel_tol=1e-4) for a, b in pairs),
        estimator,
        f"captured losses {losses['captured']} differ from eager losses {losses['eager']}.",
    )


def check_resumed_state(estimator: Estimator) -> None:
    """State loaded into a new instance, and a pickled copy, continue with the same gradients."""
    with _isolated():
        program = _supported_program(estimator)
        pair, x = (program.model, program.guide), program.x
        parameters = list(program.parameters())
        K = max(2, estimator.min_particles)
        trained, loaded = _copy(estimator, K), _copy(estimator, K)
        for _ in range(3):
            trained.loss_and_grads(*pair, x)
        loaded.load_state_dict(copy.deepcopy(trained.state_dict()))
        try:
            pickled = pickle.loads(pickle.dumps(trained))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise AssertionError(
                f"{type(estimator).__name__}: cannot be pickled: {error}. Define the class at the "
                "top of a module and keep programs out of its attributes."
            ) from error

        def step(instance: Estimator) -> tuple[float, Tensor]:
            instance.analyze(*pair, (x,), {})
            pyro.set_rng_seed(2)
            loss = instance.differentiable_loss(*pair, x)
            return float(loss.detach()), flat_gradient(loss, parameters)

        loss, gradient = step(trained)
        for name, instance in (("state_dict", loaded), ("pickle", pickled)):
            other_loss, other_gradient = step(instance)
            same = math.isclose(loss, other_loss, rel_tol=1e-6) and torch.allclose(
                gradient, other_gradient, rtol=1e-5, atol=1e-7
            )
            _require(same, estimator, f"a copy by {name} continues with another loss or gradient.")


CHECKS: tuple[Callable[[Estimator], None], ...] = (
    check_conditions,
    check_minimum_particles,
    check_rejected_sites,
    check_value,
    check_expected_gradient,
    check_particle_loop,
    check_plate_scaling,
    check_masked_rows,
    check_joint_weights,
    check_captured_steps,
    check_resumed_state,
)
