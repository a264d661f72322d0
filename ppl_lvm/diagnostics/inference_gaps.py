"""Approximation, amortization and generalization gaps.

    log p(x) − ELBO(q_enc) = [log p(x) − ELBO(q*)] + [ELBO(q*) − ELBO(q_enc)]
                               approximation             amortization

q* is the best member of the guide's family for each row: the parameters of q(z_n | x_n) are taken
out of the guide as initial values and optimized for all rows at once. The approximation gap calls
for a richer family, the amortization gap for a better encoder. Where log p(x) is a lower bound, the
approximation gap is too small. The generalization gap is the bound on training rows less that on
held-out rows.

Reference:
    Cremer, Li, Duvenaud (2018). Inference suboptimality in variational autoencoders.
    https://arxiv.org/abs/1801.03558
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import transform_to

from ppl_lvm.core.distributions import is_point
from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.types import Batch, Program
from ppl_lvm.diagnostics.base import Context, Diagnostic
from ppl_lvm.diagnostics.finding import Finding, Threshold
from ppl_lvm.particles import analyze_for_particles, draw_particles, log_weights
from ppl_lvm.particles.plate_dependence import follow_draws
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import trace_program
from ppl_lvm.posterior.evidence import standard_error

OTHERS = "Judge q by its k̂ and calibration."
QUESTION = "Whose fault is the gap?"
# Constructor arguments that determine a distribution, for the families that guides use.
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

AMORTIZATION_NAME = "amortization gap, nats per row"
AMORTIZATION = Threshold(good=0.1, bad=1.0, errors=2)
APPROXIMATION = Threshold(good=0.5, bad=3.0, errors=2)
GENERALIZATION = Threshold(good=0.1, bad=1.0, errors=2.5)


class ReplaceDistributions(Messenger):
    """Draw the named sites from other distributions."""

    def __init__(self, distributions: dict[str, Any]) -> None:
        super().__init__()
        self.distributions = distributions

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.distributions:
            msg["fn"] = self.distributions[msg["name"]].expand(msg["fn"].batch_shape)


@dataclass(frozen=True)
class InferenceGaps:
    """ELBO of the encoder and of the best member of its family, nats per row.

    Attributes:
        encoder: ELBO of the guide as it is (N,).
        optimized: ELBO of the best member of its family for each row (N,).
        log_evidence: log p(x_n) (N,), exact or a lower bound; None where it is unknown.
        still_rising: gain over the last tenth of the optimization, nats per row.
        monte_carlo_error: error of the mean difference of the two ELBOs.
        trained_particles: K of the bound that the fit maximized; 1: the ELBO.
    """

    encoder: Tensor
    optimized: Tensor
    log_evidence: Tensor | None
    still_rising: float
    monte_carlo_error: float
    trained_particles: int = 1

    @property
    def amortization(self) -> tuple[float, float]:
        """Mean and standard error over rows, with the Monte-Carlo error in it."""
        mean, error = _mean_and_error(self.optimized - self.encoder)
        return mean, math.hypot(error, self.monte_carlo_error)

    @property
    def approximation(self) -> tuple[float, float] | None:
        if self.log_evidence is None:
            return None
        return _mean_and_error(self.log_evidence - self.optimized)

    def findings(self) -> list[Finding]:
        value, error = self.amortization
        if self.trained_particles > 1:
            why = (
                f"q was fitted to a bound of {self.trained_particles} particles, not to the ELBO; "
                f"of this its family could gain {value:.3g} ± {error:.2g} nats per row."
            )
            row = Finding(
                question=QUESTION, name=AMORTIZATION_NAME, verdict="not applicable", why=why
            )
            return [row]
        rows = [
            AMORTIZATION.finding(
                QUESTION,
                AMORTIZATION_NAME,
                value,
                error,
                why="Gain of the guide's family if each row had its own parameters; the last tenth "
                f"of that optimization gained {self.still_rising:.1g}.",
                remedy="A wider or deeper encoder, more training of the guide, or refine q at test "
                "time.",
            )
        ]
        if self.approximation is not None:
            value, error = self.approximation
            rows.append(
                APPROXIMATION.finding(
                    QUESTION,
                    "approximation gap, nats per row",
                    value,
                    error,
                    why="Distance from the best member of the guide's family to log p(x).",
                    remedy="A richer family: full covariance, a flow, or hierarchical q.",
                )
            )
        return rows


@dataclass(frozen=True)
class GeneralizationGap:
    """Bounds on training and on held-out rows, nats per row, with errors over rows."""

    train: float
    train_error: float
    held_out: float
    held_out_error: float

    @property
    def gap(self) -> tuple[float, float]:
        return self.train - self.held_out, math.hypot(self.train_error, self.held_out_error)

    def findings(self) -> list[Finding]:
        gap, error = self.gap
        return [
            GENERALIZATION.finding(
                QUESTION,
                "generalization gap (training − held out), nats per row",
                gap,
                error,
                why=f"Bound on training rows {self.train:.3f}, held out {self.held_out:.3f}.",
                remedy="Stop earlier (patience), regularize, or use a smaller model or more data.",
            )
        ]


def _mean_and_error(per_row: Tensor) -> tuple[float, float]:
    return float(per_row.mean()), standard_error(per_row)


def inference_gaps(
    model: Program,
    guide: Program,
    *batch: Any,
    log_evidence: Tensor | None = None,
    steps: int = 300,
    num_particles: int = 8,
    evaluations: int = 512,
    seed: int = 0,
) -> InferenceGaps:
    """Optimize q's parameters for every row of `batch`, and compare ELBOs.

    `log_evidence` (N,) is `tightness(...).best`.

    Raises:
        CannotSayError: the guide has global or no latents, discrete ones, points, or a family
            whose parameters are not known here.
    """
    with isolated_rng(seed), pyro.validation_enabled(False):
        structure = analyze_for_particles(model, guide, batch, {}, 2)
        parameters, build_family = _extract_parameters(guide, batch, structure)

        def best(*batch: Any) -> None:
            with ReplaceDistributions(build_family()):
                guide(*batch)

        rising = _optimize(model, best, batch, structure, parameters, steps, num_particles)
        with torch.no_grad():
            log_w = [
                log_weights(
                    model, q, *batch, num_particles=evaluations, structure=structure
                ).double()
                for q in (guide, best)
            ]
    N = log_w[0].shape[1]
    variance = sum(float((w.var(0) / evaluations).sum()) for w in log_w)
    return InferenceGaps(
        log_w[0].mean(0), log_w[1].mean(0), log_evidence, rising, math.sqrt(variance) / N
    )


def _sites_with_parents(guide: Program, batch: Batch) -> set[str]:
    """Sites of the guide whose distribution depends on draws."""
    dependent = set()
    with follow_draws() as dependence:
        for name, site in trace_program(guide, batch, {}, particles=None, nesting=0).items():
            base = _unwrap(site["fn"])[0]
            arguments = [getattr(base, a) for a in _ARGUMENTS.get(type(base).__name__, ())]
            if dependence.is_unknown or any(dependence.labels(a) is not None for a in arguments):
                dependent.add(name)
    return dependent


def _extract_parameters(
    guide: Program, batch: Batch, structure: PairStructure
) -> tuple[list[Tensor], Callable[[], dict[str, Any]]]:
    """Unconstrained parameters of q's sites, and a function that builds the distributions."""
    if structure.data_plate is None or not structure.latents:
        raise CannotSayError(
            "The guide has no local latents, or global ones too.", verdict="not applicable"
        )
    with torch.no_grad():
        sites = trace_program(guide, batch, {}, particles=None, nesting=0)
        dependent = _sites_with_parents(guide, batch)
    leaves: list[Tensor] = []
    builders = {}
    for name in structure.latents:
        if name in structure.constant:
            continue
        fn = sites[name]["fn"]
        if structure.score_sites or is_point(fn):
            raise CannotSayError(
                f"The guide's site '{name}' is discrete or a point.", verdict="not applicable"
            )
        base, event_dim = _unwrap(fn)
        kind = type(base).__name__
        if kind not in _ARGUMENTS:
            raise CannotSayError(
                f"The parameters of a {kind} (site '{name}') are not known here.", OTHERS
            )
        if name in dependent:
            raise CannotSayError(f"q of site '{name}' depends on sites drawn before it.", OTHERS)
        arguments = {}
        for argument in _ARGUMENTS[kind]:
            value = getattr(base, argument).detach()
            transform = transform_to(base.arg_constraints[argument])
            leaf = transform.inv(value).clone().requires_grad_()
            arguments[argument] = (leaf, transform)
            leaves.append(leaf)
        builders[name] = (type(base), arguments, event_dim)

    def build_family() -> dict[str, Any]:
        return {
            name: cls(**{a: t(leaf) for a, (leaf, t) in arguments.items()}).to_event(event_dim)
            for name, (cls, arguments, event_dim) in builders.items()
        }

    return leaves, build_family


def _unwrap(fn: Any) -> tuple[Any, int]:
    """The distribution under expansions and `to_event`, and its number of event dimensions."""
    event_dim = 0
    while type(fn).__name__ in ("Independent", "ExpandedDistribution"):
        if type(fn).__name__ == "Independent":
            event_dim += fn.reinterpreted_batch_ndims
        elif fn.batch_shape != fn.base_dist.batch_shape:
            fn = fn.base_dist.expand(fn.batch_shape)
            continue
        fn = fn.base_dist
    return fn, event_dim


def _optimize(
    model: Program,
    guide: Program,
    batch: Batch,
    structure: PairStructure,
    leaves: list[Tensor],
    steps: int,
    num_particles: int,
) -> float:
    """Ascend the ELBO of every row at once; the gain over the last tenth, nats per row."""
    optimizer = torch.optim.Adam(leaves, lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    values = []
    for _ in range(steps):
        p = draw_particles(model, guide, batch, {}, structure, num_particles)
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


def generalization_gap(
    model: Program,
    guide: Program,
    train: Batch,
    held_out: Batch,
    *,
    num_particles: int = 100,
    seed: int = 0,
) -> GeneralizationGap:
    """The ELBO on training and on held-out rows.

    Raises:
        CannotSayError: global latents, whose q was fitted to the training rows as one data set.
    """
    bounds: list[float] = []
    with isolated_rng(seed), torch.no_grad():
        for batch in (train, held_out):
            structure = analyze_for_particles(model, guide, batch, {}, num_particles)
            if structure.data_plate is None:
                raise CannotSayError(
                    "Global latents: leave-one-out prediction stands for it.",
                    verdict="not applicable",
                )
            log_w = log_weights(
                model, guide, *batch, num_particles=num_particles, structure=structure
            )
            bounds += _mean_and_error(log_w.double().mean(0))
    return GeneralizationGap(*bounds)


def _run_gaps(context: Context) -> InferenceGaps:
    tightness = context.results.get("tightness")
    result = inference_gaps(
        context.model,
        context.guide,
        *context.annealing_rows,
        log_evidence=None if tightness is None else tightness.best,
        seed=context.seed,
    )
    return replace(result, trained_particles=context.particles_of_bound)


def _run_generalization(context: Context) -> GeneralizationGap:
    if context.held_out is None:
        raise CannotSayError(
            "No rows were held out.", "Fit with validation=0.1, or pass held_out= rows."
        )
    return generalization_gap(
        context.model, context.guide, context.train, context.held_out, seed=context.seed
    )


INFERENCE_GAPS = Diagnostic(
    slug="gaps",
    question=QUESTION,
    title="approximation and amortization gap",
    run=_run_gaps,
    spoils=("codes", "uncertainty"),
)
GENERALIZATION_GAP = Diagnostic(
    slug="generalization",
    question=QUESTION,
    title="generalization gap",
    run=_run_generalization,
    spoils=("density", "samples"),
)
