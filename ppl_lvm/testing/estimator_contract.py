"""Contract of gradient estimators.

    from ppl_lvm.testing import check_estimator
    check_estimator(MyEstimator)                    # or an instance: MyEstimator(alpha=0.2)

`CHECKS` lists the checks. Each raises AssertionError with the class and the fault.
"""

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.distributions import Bernoulli, Normal
from pyro.poutine import mask
from torch import Tensor

from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.estimators.base import Estimator
from ppl_lvm.particles.structure import Program
from ppl_lvm.programs.minibatch import ScaleDataPlate
from ppl_lvm.testing import exact_programs as programs
from ppl_lvm.testing.estimator_expectations import (
    TOLERANCE,
    check_expected_gradient,
    check_particle_loop,
    check_value,
    copy_estimator,
    is_enumerable,
    isolated,
    require,
)
from ppl_lvm.testing.expectations import double_precision, flat_gradient


@public_call
def check_estimator(estimator: type[Estimator] | Estimator) -> None:
    """Run all `CHECKS` on an estimator class or instance.

    Raises:
        AssertionError: with the class, the check and the fault.
    """
    instance: Any = estimator() if isinstance(estimator, type) else estimator
    for check in CHECKS:
        check(instance)


def _supported_program(estimator: Estimator) -> Any:
    gaussian = estimator.requires == "reparameterized"
    return programs.GaussianProgram() if gaussian else programs.BernoulliProgram()


def check_conditions(estimator: Estimator) -> None:
    """Conditions are class attributes of the right type."""
    cls = type(estimator)
    for name, kind in (("target", str), ("paper", str), ("unbiased", bool)):
        declared = isinstance(getattr(cls, name, None), kind) and getattr(cls, name) != ""
        require(declared, estimator, f"`{name}` is not declared. Set it on the class.")
    accepted = ("any", "reparameterized", "bernoulli", "discrete")
    require(cls.requires in accepted, estimator, f"`requires` is none of {accepted}.")
    if cls.requires != "any":
        require(bool(cls.fallback), estimator, "`fallback` is not declared, but needed in errors.")
    require(cls.min_particles >= 1, estimator, "`min_particles` is less than 1.")


def check_minimum_particles(estimator: Estimator) -> None:
    """Too few particles and fractions raise at construction."""
    cls: Any = type(estimator)
    few = "needs at least" if cls.min_particles > 1 else "at least 1"
    for K, message in ((cls.min_particles - 1, few), (2.5, "whole number")):
        try:
            cls(num_particles=K)
        except ValueError as error:
            named = message in str(error) and cls.__name__ in str(error)
            require(named, estimator, f"num_particles={K} raises an unclear message: {error}")
        else:
            require(False, estimator, f"num_particles={K} is accepted.")


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
    with isolated():
        copied = copy_estimator(estimator, max(2, estimator.min_particles))
        try:
            copied.loss(*pair(distribution), torch.zeros(2))
        except ValueError as error:
            named = site in str(error) and "Use " in str(error)
            require(named, estimator, f"the error does not name {site} and a remedy: {error}")
        else:
            require(False, estimator, f"site {site} is accepted, but requires={copied.requires!r}.")


def check_plate_scaling(estimator: Estimator) -> None:
    """Loss and gradient of a batch of B of N rows are N/B times those of the batch."""
    with isolated(), double_precision():
        program, scaled = _supported_program(estimator), ScaleDataPlate(10)
        parameters = list(program.parameters())
        results = []
        for model, guide in (
            (program.model, program.guide),
            (scaled(program.model), scaled(program.guide)),
        ):
            copied = copy_estimator(estimator, max(4, estimator.min_particles))
            copied.analyze(model, guide, (program.x,), {})
            pyro.set_rng_seed(1)
            value = copied.differentiable_loss(model, guide, program.x)
            results.append((float(value.detach()), flat_gradient(value, parameters)))
    (loss, gradient), (scaled_loss, scaled_gradient) = results
    ratio = 10 / len(program.x)
    require(
        math.isclose(scaled_loss, ratio * loss, rel_tol=TOLERANCE),
        estimator,
        f"the loss of 2 of 10 rows is {scaled_loss / loss:.6g} times that of the batch, not 5.",
    )
    error = float((scaled_gradient - ratio * gradient).abs().max())
    require(
        error < TOLERANCE * max(1.0, float(scaled_gradient.abs().max())),
        estimator,
        f"the gradient of 2 of 10 rows differs from 5 times that of the batch by {error:.2g}.",
    )


def check_masked_rows(estimator: Estimator) -> None:
    """A masked row does not change the loss."""
    with isolated(), double_precision():
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
            copied = copy_estimator(estimator, max(2, estimator.min_particles))
            x = program.x + shift * (~rows).to(program.x)
            copied.analyze(model, guide, (x,), {})
            copied.eval()
            pyro.set_rng_seed(1)
            losses.append(copied.loss(model, guide, x))
    require(
        math.isclose(*losses, rel_tol=TOLERANCE),
        estimator,
        f"the loss changes from {losses[0]:.9g} to {losses[1]:.9g} with the value of a masked row.",
    )


def check_joint_weights(estimator: Estimator) -> None:
    """A nonlinear bound warns once if N/B is inside a joint log-weight."""
    if not is_enumerable(estimator) or estimator.requires_batch_rows:
        return
    with isolated_rng(0), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program = programs.GlobalLatentProgram()
        copied = copy_estimator(estimator, max(2, estimator.min_particles))
        for _ in range(2):
            copied.loss(program.model, program.guide, program.x)
    number = sum("is no bound on log p(x) here" in str(warning.message) for warning in caught)
    expected = 0 if estimator.is_linear else 1
    require(
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
        with isolated():
            x = torch.randn(6, 3)
            pyro.set_rng_seed(0)
            copied = copy_estimator(estimator, max(2, estimator.min_particles))
            svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.01}), copied, engine=engine)
            try:
                losses[engine] = [float(svi.step(x)) for _ in range(6)]
            except CannotCaptureError as error:
                raise AssertionError(
                    f"{type(estimator).__name__}: its step cannot be captured: {error}"
                ) from error
    pairs = zip(losses["captured"], losses["eager"], strict=True)
    require(
        all(math.isclose(a, b, rel_tol=1e-4) for a, b in pairs),
        estimator,
        f"captured losses {losses['captured']} differ from eager losses {losses['eager']}.",
    )


def check_resumed_state(estimator: Estimator) -> None:
    """State loaded into a new instance, and a pickled copy, continue with the same gradients."""
    with isolated():
        program = _supported_program(estimator)
        pair, x = (program.model, program.guide), program.x
        parameters = list(program.parameters())
        K = max(2, estimator.min_particles)
        trained, loaded = copy_estimator(estimator, K), copy_estimator(estimator, K)
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
            require(same, estimator, f"a copy by {name} continues with another loss or gradient.")


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
