"""Whose fault is the gap? Approximation, amortisation, generalisation.

    log p(x) − ELBO(q_enc) = [log p(x) − ELBO(q*)] + [ELBO(q*) − ELBO(q_enc)]
                               approximation             amortisation

q* is the best member of the guide's own family for each datum: the parameters of q(z_n | x_n)
are taken out of the guide, start where it puts them, and are optimised for all data at once. The
first gap asks for a richer family, the second for a better encoder. Where log p(x) is a lower
bound, the approximation gap is under-stated. The generalisation gap is the bound on training
data less that on held-out data.

Reference:
    Cremer, Li, Duvenaud (2018). Inference suboptimality in variational autoencoders.
    https://arxiv.org/abs/1801.03558
"""

import math
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import transform_to

from ppl_lvm.core.distributions import is_point
from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.diagnostics.finding import PROJECT_DEFAULT, Finding, graded
from ppl_lvm.particles import analyze_for_particles, draw_particles, log_weights
from ppl_lvm.particles.structure import PairStructure, Program
from ppl_lvm.particles.tracing import trace_program

QUESTION = "Whose fault is the gap?"
# Constructor arguments that settle a distribution, of the families that guides are made of.
_ARGUMENTS = {
    "Normal": ("loc", "scale"),
    "LogNormal": ("loc", "scale"),
    "MultivariateNormal": ("loc", "scale_tril"),
    "Laplace": ("loc", "scale"),
    "Gamma": ("concentration", "rate"),
    "Beta": ("concentration1", "concentration0"),
    "Dirichlet": ("concentration",),
    "StudentT": ("df", "loc", "scale"),
}


class Replace(Messenger):
    """Draw the named sites from other distributions."""

    def __init__(self, distributions: dict[str, Any]) -> None:
        super().__init__()
        self.distributions = distributions

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.distributions:
            msg["fn"] = self.distributions[msg["name"]].expand(msg["fn"].batch_shape)


@dataclass(frozen=True)
class Gaps:
    """Nats per row, (N,) each; `log_evidence` is None where nobody gave it.

    Attributes:
        encoder: ELBO of the guide as it is.
        optimised: ELBO of the best member of its family, datum by datum.
        log_evidence: log p(x_n), exact or a lower bound.
        still_rising: gain of the last tenth of the optimisation, nats per row.
        monte_carlo_error: of the mean difference of the two ELBOs.
    """

    encoder: Tensor
    optimized: Tensor
    log_evidence: Tensor | None
    still_rising: float
    monte_carlo_error: float

    @property
    def amortization(self) -> tuple[float, float]:
        """Mean and standard error over data, with the Monte-Carlo error in it."""
        mean, error = _mean(self.optimized - self.encoder)
        return mean, math.hypot(error, self.monte_carlo_error)

    @property
    def approximation(self) -> tuple[float, float] | None:
        if self.log_evidence is None:
            return None
        return _mean(self.log_evidence - self.optimized)

    def findings(self) -> list[Finding]:
        value, error = self.amortization
        rows = [
            Finding(
                QUESTION,
                "amortisation gap, nats per row",
                value,
                error,
                "good ≤ 0.1, bad > 1",
                PROJECT_DEFAULT,
                graded(value - 2 * error, 0.1, 1.0),
                f"What the guide's own family would gain if each datum had its own parameters; "
                f"the last tenth of that optimisation gained {self.still_rising:.1g}.",
                ""
                if value - 2 * error <= 0.1
                else "A wider or deeper encoder, more training of the guide, or refine q at test "
                "time.",
            )
        ]
        if self.approximation is not None:
            value, error = self.approximation
            rows.append(
                Finding(
                    QUESTION,
                    "approximation gap, nats per row",
                    value,
                    error,
                    "good ≤ 0.5, bad > 3",
                    PROJECT_DEFAULT,
                    graded(value - 2 * error, 0.5, 3.0),
                    "What the best member of the guide's family still leaves to log p(x).",
                    ""
                    if value - 2 * error <= 0.5
                    else "A richer family: full covariance, a flow, or hierarchical q.",
                )
            )
        return rows


@dataclass(frozen=True)
class Generalisation:
    """Bounds on training and on held-out rows, nats per row, with errors over data."""

    train: float
    train_error: float
    held_out: float
    held_out_error: float

    @property
    def gap(self) -> tuple[float, float]:
        return self.train - self.held_out, math.hypot(self.train_error, self.held_out_error)

    def findings(self) -> list[Finding]:
        gap, error = self.gap
        beyond = gap - 2.5 * error
        return [
            Finding(
                QUESTION,
                "generalisation gap (training − held out), nats per row",
                gap,
                error,
                "good if ≤ 2.5 standard errors + 0.1, bad > 1 beyond those",
                PROJECT_DEFAULT,
                graded(beyond, 0.1, 1.0),
                f"Bound on training rows {self.train:.3f}, held out {self.held_out:.3f}.",
                ""
                if beyond <= 0.1
                else "Stop earlier (patience), regularise, or use a smaller model or more data.",
            )
        ]


def _mean(per_row: Tensor) -> tuple[float, float]:
    N = len(per_row)
    return float(per_row.mean()), float(per_row.std() / math.sqrt(N)) if N > 1 else math.nan


def gaps(
    model: Program,
    guide: Program,
    *batch: Any,
    log_evidence: Tensor | None = None,
    steps: int = 300,
    num_particles: int = 8,
    evaluations: int = 512,
    seed: int = 0,
) -> Gaps:
    """Optimise q's parameters for every row of `batch` and compare.

    `log_evidence` (N,) is what `tightness(...).best` gives.

    Raises:
        CannotSayError: the guide has global or no latents, discrete ones, points, or a family
            whose parameters are not known here.
    """
    with isolated_rng(seed), pyro.validation_enabled(False):
        plan = analyze_for_particles(model, guide, batch, {}, 2)
        parameters, family = _take_out(guide, batch, plan)

        def best(*batch: Any) -> None:
            with Replace(family()):
                guide(*batch)

        rising = _optimize(model, best, batch, plan, parameters, steps, num_particles)
        with torch.no_grad():
            each = [
                log_weights(model, q, *batch, num_particles=evaluations, structure=plan).double()
                for q in (guide, best)
            ]
    N = each[0].shape[1]
    variance = sum(float((w.var(0) / evaluations).sum()) for w in each)
    return Gaps(each[0].mean(0), each[1].mean(0), log_evidence, rising, math.sqrt(variance) / N)


def _take_out(
    guide: Program, batch: tuple[Any, ...], plan: PairStructure
) -> tuple[list[Tensor], Any]:
    """Unconstrained parameters of q's sites, and a function that builds the distributions."""
    if plan.data_plate is None or not plan.latents:
        raise CannotSayError("The guide has no local latents, or global ones beside them.")
    with torch.no_grad():
        sites = trace_program(guide, batch, {}, particles=None, nesting=0)
        again = trace_program(guide, batch, {}, particles=None, nesting=0)
    leaves: list[Tensor] = []
    builders = {}
    for name in plan.latents:
        if name in plan.constant:
            continue
        fn = sites[name]["fn"]
        if plan.score_sites or is_point(fn):
            raise CannotSayError(f"The guide's site '{name}' is discrete or a point.")
        base, events = _unwrap(fn)
        kind = type(base).__name__
        if kind not in _ARGUMENTS:
            raise CannotSayError(f"The parameters of a {kind} (site '{name}') are not known here.")
        own = {}
        for argument in _ARGUMENTS[kind]:
            value = getattr(base, argument).detach()
            if not torch.equal(value, getattr(_unwrap(again[name]["fn"])[0], argument)):
                raise CannotSayError(f"q of site '{name}' depends on sites drawn before it.")
            transform = transform_to(base.arg_constraints[argument])
            leaf = transform.inv(value).clone().requires_grad_()
            own[argument] = (leaf, transform)
            leaves.append(leaf)
        builders[name] = (type(base), own, events)

    def family() -> dict[str, Any]:
        return {
            name: cls(**{a: t(leaf) for a, (leaf, t) in own.items()}).to_event(events)
            for name, (cls, own, events) in builders.items()
        }

    return leaves, family


def _unwrap(fn: Any) -> tuple[Any, int]:
    """The distribution under expansions and `to_event`, and how many dimensions are events."""
    events = 0
    while type(fn).__name__ in ("Independent", "ExpandedDistribution"):
        if type(fn).__name__ == "Independent":
            events += fn.reinterpreted_batch_ndims
        elif fn.batch_shape != fn.base_dist.batch_shape:
            fn = fn.base_dist.expand(fn.batch_shape)
            continue
        fn = fn.base_dist
    return fn, events


def _optimize(
    model: Program,
    guide: Program,
    batch: tuple[Any, ...],
    plan: PairStructure,
    leaves: list[Tensor],
    steps: int,
    num_particles: int,
) -> float:
    """Ascend the ELBO of every datum at once; the gain over the last tenth, nats per row."""
    optimizer = torch.optim.Adam(leaves, lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    values = []
    for _ in range(steps):
        p = draw_particles(model, guide, batch, {}, plan, num_particles)
        elbo = p.log_w.mean(0)
        gradients = torch.autograd.grad(-elbo.sum(), leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        optimizer.step()
        schedule.step()
        values.append(float(elbo.detach().mean()))
    tenth = max(1, steps // 10)
    ends = torch.tensor(values[-2 * tenth :])
    return float(ends[tenth:].mean() - ends[:tenth].mean())


def generalization(
    model: Program,
    guide: Program,
    train: tuple[Any, ...],
    held_out: tuple[Any, ...],
    *,
    num_particles: int = 100,
    seed: int = 0,
) -> Generalisation:
    """The ELBO on two sets of rows.

    Raises:
        CannotSayError: with global latents, whose q has seen the training rows only as a whole.
    """
    found: list[float] = []
    with isolated_rng(seed), torch.no_grad():
        for batch in (train, held_out):
            plan = analyze_for_particles(model, guide, batch, {}, num_particles)
            if plan.data_plate is None:
                raise CannotSayError("Global latents: use leave-one-out prediction instead.")
            log_w = log_weights(model, guide, *batch, num_particles=num_particles, structure=plan)
            found += _mean(log_w.double().mean(0))
    return Generalisation(*found)
