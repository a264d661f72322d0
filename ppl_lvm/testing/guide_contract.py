"""Contract of guides, for anybody's guide."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor, nn
from torch.distributions import biject_to, kl_divergence

from ppl_lvm.checks import check
from ppl_lvm.core.distributions import is_point
from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.validate import ProgramSource
from ppl_lvm.programs.pair import copy_programs
from ppl_lvm.programs.row_state import ProvideBatchRows
from ppl_lvm.programs.sources import GuideFactory
from ppl_lvm.programs.traces import latent_sites, plate_nesting
from ppl_lvm.testing.model_case import plain_objective

PARTICLES = 3
KL_PARTICLES = 200
KL_ROUNDING = 1e-5  # nats: a guide that begins at the posterior cannot approach it
GRID_LINE, GRID_PLANE = 2001, 101  # points per axis for events of one and two values
Unsupported = tuple[Any, tuple[Any, ...], str]  # model, batch, site that the message names


@public_call
def check_guide(
    guide: ProgramSource,
    model: ProgramSource,
    batch: tuple[Tensor, ...],
    *,
    unsupported: Sequence[Unsupported] = (),
    exact: Callable[..., Any] | None = None,
    num_steps: int = 60,
) -> None:
    """Assert that a guide keeps the promises of every guide.

    The guide accepts the model's arguments; samples its latents in their plates, shapes and
    supports; has normalized densities (of events of at most two values), and parameters that all
    receive gradients; scores values as it scored them when it drew them; runs under plain
    `pyro.infer.SVI`, with vectorized particles and on a smaller last batch; is deterministic under
    a seed; and is restored by its `state_dict`.

    Args:
        guide: a guide, or a class or builder of guides.
        model: the model; it is copied, and not changed.
        batch: arguments of both, rows first.
        unsupported: models that the builder must refuse, each with a batch and the name of the site
            that the message must contain, beside a remedy.
        exact: a program that samples the model's latents from the exact posterior. If given,
            KL(guide ‖ exact) must decrease in `num_steps` steps of SVI on the guide.
        num_steps: steps of that fit.

    Raises:
        AssertionError: naming the guide and the broken promise.
    """
    subject = _Subject(guide, model, batch)
    for promise in (
        _passes_check,
        _has_normalized_densities,
        _scores_copies_as_draws,
        _trains_under_plain_svi,
        _vectorizes_particles,
        _accepts_a_smaller_batch,
        _is_deterministic_under_a_seed,
        _is_restored_by_its_state_dict,
    ):
        promise(subject)
    for other_model, other_batch, site in unsupported:
        _refuses(subject, other_model, other_batch, site)
    if exact is not None:
        _approaches(subject, exact, num_steps)


@dataclass(frozen=True)
class _Subject:
    guide: Any
    model: Any
    batch: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        return str(getattr(self.guide, "__name__", type(self.guide).__name__))

    @contextlib.contextmanager
    def pair(self, seed: int = 0) -> Iterator[tuple[Any, Any]]:
        """A copy of the model and a new guide for it, in an empty parameter store."""
        with preserve_rng(), pyro.get_param_store().scope():
            pyro.set_rng_seed(seed)
            guide = GuideFactory(self.guide).make(self.model, self.batch)
            model, guide = copy_programs(self.model, guide)
            pyro.get_param_store().clear()
            yield model, guide

    def require(self, condition: Any, problem: str) -> None:
        assert condition, f"{self.name}: {problem}."

    @contextlib.contextmanager
    def attempt(self, action: str) -> Iterator[None]:
        """Report an exception inside as a broken promise."""
        try:
            yield
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(
                f"{self.name}: it does not {action}: {type(error).__name__}: {error}"
            ) from error


def _passes_check(subject: _Subject) -> None:
    with subject.pair() as (model, guide):
        issues = check(model, guide, *subject.batch)
    faults = [str(issue) for issue in issues if issue.severity != "note"]
    subject.require(not faults, "check reports\n" + "\n".join(faults))


def _has_normalized_densities(subject: _Subject) -> None:
    with (
        subject.pair() as (_, guide),
        torch.no_grad(),
        pyro.validation_enabled(False),  # the grid leaves the support where a transform saturates
    ):
        sites = latent_sites(poutine.trace(guide).get_trace(*subject.batch))
        for name, site in sites.items():
            mass = _mass(site["fn"])
            if mass is not None:
                subject.require(
                    torch.allclose(mass, torch.ones_like(mass), atol=5e-3),
                    f"the density of {name!r} integrates to {mass.flatten().tolist()}",
                )


def _mass(fn: Any) -> Tensor | None:
    """∫ q(z) dz per batch element, or Σ_z q(z); None for events of more than two values."""
    if is_point(fn):
        return None
    if getattr(fn, "has_enumerate_support", False):
        try:
            values = fn.enumerate_support(expand=False)
        except NotImplementedError:
            return None
        return fn.log_prob(values).exp().sum(0)
    try:
        transform = biject_to(fn.support)
    except NotImplementedError:
        return None
    shape = torch.Size(transform.inverse_shape(fn.event_shape))
    size = math.prod(shape)
    if fn.support.is_discrete or size > 2:
        return None
    draws = transform.inv(fn.sample((200,))).reshape(200, *fn.batch_shape, size)
    center, spread = draws.mean(0), draws.std(0).clamp(min=1e-6)
    axis = torch.linspace(-12, 12, GRID_LINE if size == 1 else GRID_PLANE).to(center)
    grid = torch.cartesian_prod(*[axis] * size).reshape(-1, *[1] * len(fn.batch_shape), size)
    u = (center + spread * grid).reshape(-1, *fn.batch_shape, *shape)
    z = transform(u)
    log_det = transform.log_abs_det_jacobian(u, z)
    log_q = fn.log_prob(z) + log_det.reshape(log_det.shape[: 1 + len(fn.batch_shape)])
    mass: Tensor = log_q.nan_to_num(-torch.inf, -torch.inf).exp().sum(0)
    return mass * (axis[1] - axis[0]) ** size * spread.prod(-1)


def _scores_copies_as_draws(subject: _Subject) -> None:
    with subject.pair() as (_, guide), torch.no_grad():
        trace = poutine.trace(guide).get_trace(*subject.batch)
        for name, site in latent_sites(trace).items():
            score = site["fn"].log_prob(site["value"])
            again = site["fn"].log_prob(site["value"].clone())
            subject.require(
                torch.allclose(score, again, rtol=1e-2, atol=1e-2),
                f"the log-probability of a draw of {name!r} differs from that of its copy",
            )


def _trains_under_plain_svi(subject: _Subject) -> None:
    with subject.pair() as (model, guide), subject.attempt("train under pyro.infer.SVI"):
        objective = plain_objective(model, guide, subject.batch)
        svi = SVI(model, guide, Adam({"lr": 1e-3}), objective)
        losses = [svi.step(*subject.batch) for _ in range(2)]
        subject.require(all(map(math.isfinite, losses)), f"the losses of SVI are {losses}")


def _vectorizes_particles(subject: _Subject) -> None:
    with subject.pair() as (model, guide), subject.attempt("run with vectorized particles"):
        plain = latent_sites(poutine.trace(guide).get_trace(*subject.batch))
        nesting = plate_nesting(poutine.trace(model).get_trace(*subject.batch))
        with torch.no_grad(), pyro.plate("particles", PARTICLES, dim=-1 - nesting):
            trace = poutine.trace(guide).get_trace(*subject.batch)
        for name, site in latent_sites(trace).items():
            subject.require(
                site["value"].numel() == PARTICLES * plain[name]["value"].numel(),
                f"{PARTICLES} vectorized particles of {name!r} have shape "
                f"{tuple(site['value'].shape)}",
            )
        options = {"num_particles": PARTICLES, "vectorize_particles": True}
        loss = plain_objective(model, guide, subject.batch, **options).loss(
            model, guide, *subject.batch
        )
        subject.require(math.isfinite(loss), f"the loss of vectorized particles is {loss}")


def _accepts_a_smaller_batch(subject: _Subject) -> None:
    rows = len(subject.batch[0])
    size = max(1, rows // 2)
    with subject.pair() as (model, guide), subject.attempt("run on a smaller batch"):
        objective = plain_objective(model, guide, subject.batch)
        batch = tuple(x[:size] if len(x) == rows else x for x in subject.batch)
        with ProvideBatchRows(torch.arange(size), num_rows=rows):
            loss = objective.loss(model, guide, *batch)
        subject.require(math.isfinite(loss), f"the loss of a smaller batch is {loss}")


def _draws(guide: Any, batch: tuple[Any, ...]) -> dict[str, Tensor]:
    pyro.set_rng_seed(1)
    with torch.no_grad():
        sites = latent_sites(poutine.trace(guide).get_trace(*batch))
    return {name: site["value"] for name, site in sites.items()}


def _is_deterministic_under_a_seed(subject: _Subject) -> None:
    with subject.pair(seed=2) as (_, guide):
        first = _draws(guide, subject.batch)
    with subject.pair(seed=2) as (_, guide):
        second = _draws(guide, subject.batch)
    for name, value in first.items():
        subject.require(
            torch.equal(value, second[name]), f"draws of {name!r} differ under the same seed"
        )


def _is_restored_by_its_state_dict(subject: _Subject) -> None:
    """In evaluation mode, after two steps, with the model's state restored too."""
    with subject.pair(seed=3) as (model, guide):
        if not isinstance(guide, nn.Module):
            return
        svi = SVI(model, guide, Adam({"lr": 0.1}), plain_objective(model, guide, subject.batch))
        for _ in range(2):
            svi.step(*subject.batch)
        guide.eval()
        expected = _draws(guide, subject.batch)
        states = [_state(program) for program in (model, guide)]
    with subject.pair(seed=4) as (model, guide), subject.attempt("load its state_dict"):
        _draws(guide, subject.batch)  # creates lazy parameters
        for program, state in zip((model, guide), states, strict=True):
            if isinstance(program, nn.Module):
                program.load_state_dict(state)
        guide.eval()
        for name, value in _draws(guide, subject.batch).items():
            subject.require(
                torch.allclose(value, expected[name], rtol=1e-4, atol=1e-5),
                f"draws of {name!r} differ after its state_dict was loaded",
            )


def _state(program: Any) -> dict[str, Tensor]:
    state = program.state_dict() if isinstance(program, nn.Module) else {}
    return {name: tensor.clone() for name, tensor in state.items()}


def _refuses(subject: _Subject, model: Any, batch: tuple[Any, ...], site: str) -> None:
    try:
        GuideFactory(subject.guide).make(model, batch)
    except ValueError as error:
        message = str(error)
    else:
        raise AssertionError(f"{subject.name}: it does not refuse the site {site!r}.")
    subject.require(repr(site) in message, f"its refusal does not name {site!r}: {message}")
    subject.require(
        re.search(r"\. (Use|Add|Write|Put|Make|Let|Enumerate|Give) ", message),
        f"its refusal names no remedy: {message}",
    )


def _approaches(subject: _Subject, exact: Any, num_steps: int) -> None:
    with subject.pair() as (model, guide):
        before = _kl(guide, exact, subject.batch)
        svi = SVI(model, guide, Adam({"lr": 0.03}), plain_objective(model, guide, subject.batch))
        for _ in range(num_steps):
            svi.step(*subject.batch)
        after = _kl(guide, exact, subject.batch)
    subject.require(
        after < max(before, KL_ROUNDING),
        f"KL to the posterior rises from {before:.3g} to {after:.3g} nats",
    )


def _kl(guide: Any, exact: Any, batch: tuple[Any, ...]) -> float:
    """KL(guide ‖ exact), estimated where it has no closed form."""
    pyro.set_rng_seed(5)
    total = 0.0
    with torch.no_grad():
        nesting = plate_nesting(poutine.trace(guide).get_trace(*batch))
        with pyro.plate("particles", KL_PARTICLES, dim=-1 - nesting):
            trace = poutine.trace(guide).get_trace(*batch)
            posterior = poutine.trace(poutine.replay(exact, trace)).get_trace(*batch)
        for name, site in latent_sites(trace).items():
            q, p, value = site["fn"], posterior.nodes[name]["fn"], site["value"]
            try:
                kl = kl_divergence(q, p)
            except NotImplementedError:
                kl = q.log_prob(value) - p.log_prob(value)
            total += float(kl.sum()) / KL_PARTICLES
    return total
