"""Fit a posterior over global latents without gradient steps.

`fit` calls this where the model has no parameters and no latent needs a network: the posterior is a
distribution over one vector, and `ppl_lvm.approximation` finds it. The result is a run whose guide
is a `GlobalMultivariateNormal`, of many values a `GlobalLowRankNormal`, and whose draws are those
of the method.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ppl_lvm.core import distributed
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Batch
from ppl_lvm.data import Data
from ppl_lvm.data.selection import first_rows
from ppl_lvm.estimators import objectives
from ppl_lvm.fitting.session import Session, no_evidence, recorded
from ppl_lvm.posterior.psis import RELIABLE_K_HAT, draws_error
from ppl_lvm.posterior.suitability import unsuitable, weighted_rows
from ppl_lvm.programs.pair import ModelGuidePair, copy_programs
from ppl_lvm.programs.precision import default_dtype, in_double
from ppl_lvm.programs.signatures import Signature, signature
from ppl_lvm.programs.sources import GuideFactory, ModelFactory
from ppl_lvm.runs.run import Run
from ppl_lvm.training.options import FitOptions, GradientOptions, declared
from ppl_lvm.training.preparation import require_running_model, warn_or_raise

if TYPE_CHECKING:
    from ppl_lvm.approximation import Approximation
    from ppl_lvm.approximation.unconstrained import LogDensity

GUIDE = "ppl_lvm.guides:GlobalMultivariateNormal"
FACTORED_GUIDE = "ppl_lvm.guides:GlobalLowRankNormal"
DECIDE_ROWS = 100  # that the model is run on to see its sites
EVIDENCE_PARTICLES = 1000
TEMPLATE_NUMBERS = 1_000_000  # stored with a run at most
SHARED = {"seed", "checkpoint_seconds"}
STEP_OPTIONS = {f.name: f.default for f in declared(GradientOptions) if f.name not in SHARED} | {
    name: FitOptions.__dataclass_fields__[name].default
    for name in (
        "objective",
        "num_steps",
        "num_epochs",
        "batch_size",
        "validate_every",
        "restarts",
        "guide_settings",
    )
}


def choose_method(model: Any, guide: Any, options: FitOptions, session: Session) -> str:
    """The method of a fit: that of the options, or for "auto" the one that suits the model.

    Raises:
        ValueError: the method asked for does not serve the model or the options, with the reason.
    """
    changed = [n for n, default in STEP_OPTIONS.items() if getattr(options, n) != default]
    if options.method == "svi":
        return "svi"
    if options.method != "auto":
        if guide is not None:
            raise ValueError(
                f"method={options.method!r} makes its own guide. Pass guide=None, or method='svi'."
            )
        if changed:
            raise ValueError(
                f"{changed[0]}: it is an option of gradient steps, which "
                f"method={options.method!r} has none of. Leave it out, or use method='svi'."
            )
        problem = _problem(model, options, session)
        if problem is not None:
            raise ValueError(f"method={options.method!r}: {problem}. Use method='svi'.")
        return options.method
    if (
        guide is not None
        or changed
        or session.data.batch_size is not None
        or _problem(model, options, session) is not None
    ):
        return "svi"
    return "auto"


def _problem(model: Any, options: FitOptions, session: Session) -> str | None:
    """Reason why the model's posterior is no distribution over one short vector, or None."""
    factory = ModelFactory(copy_programs(model)[0], options.settings)
    if hasattr(factory.kind, "initialize"):
        return "the model has parameters to initialize"
    rows = first_rows(session.train, DECIDE_ROWS)
    if distributed.world_size() > 1:
        return "it runs in one process"
    if any(part.device.type != "cpu" for part in rows):
        return "it runs on the CPU, and the data are on a device"
    with preserve_rng():
        instance = factory.make(rows)
        if getattr(instance, "default_guide", None) is not None:
            return "the model has a guide"
        trained = _trained_parameter(instance)
        if trained is not None:
            return trained
        signed = _signature(instance, rows)
        return _weights_problem(signed, session.train.weights) or unsuitable(
            signed, num_rows(signed, session.train), len(rows[0])
        )


def repeats_rows(signed: Signature, data: Data) -> bool:
    """True if rows with weights must be repeated: each has its latents."""
    local = any(site.local and site.enumerate is None for site in signed.latents)
    return data.weights is not None and local


def num_rows(signed: Signature, data: Data) -> int:
    """Rows, after they are repeated where they must be."""
    return round(data.total_weight) if repeats_rows(signed, data) else len(data)


def _weights_problem(signed: Signature, weights: Tensor | None) -> str | None:
    """Reason why rows cannot have these weights, or None."""
    if weights is None:
        return None
    if signed.row_plate is None:
        return "the model has no plate over rows, which weights need"
    local = [site.name for site in signed.latents if site.local and site.enumerate is None]
    if local and not torch.equal(weights, weights.round()):
        return f"rows have the latent {local[0]!r}, and weights that are no whole numbers"
    return None


def _trained_parameter(model: Any) -> str | None:
    parameters = model.named_parameters() if isinstance(model, nn.Module) else ()
    name = next((name for name, p in parameters if p.requires_grad), None)
    return name and f"the model has the parameter {name!r}, and a posterior of latents only"


def _signature(model: Any, rows: Batch) -> Signature:
    """The signature in double precision, as the methods run the model, else in the default."""
    double = torch.float64
    with suppress(Exception), default_dtype(double):
        return signature(model, *(t.to(double) if t.is_floating_point() else t for t in rows))
    try:
        return signature(model, *rows)
    except Exception:
        require_running_model(model, *rows)
        raise


@dataclass(frozen=True)
class _Prepared:
    """A model and all rows in one precision."""

    session: Session
    factory: ModelFactory
    instance: Any
    rows: Batch
    target: "LogDensity"

    @property
    def dense(self) -> bool:
        """True if all covariances are kept."""
        from ppl_lvm.approximation.normal import MAX_DENSE

        return self.target.dim <= MAX_DENSE


def fit_posterior(
    model: Any, data: Any, options: FitOptions, method: str, say: Callable[[str], None]
) -> Run:
    """A run whose guide is the posterior found by `method`."""
    with preserve_rng(), default_dtype(torch.float64):
        prepared = _prepare(model, data, options)
        session, instance, rows = prepared.session, prepared.instance, prepared.rows
        guides = GuideFactory(GUIDE if prepared.dense else FACTORED_GUIDE)
        guide: Any = guides.make(instance, rows)
        warn_or_raise(instance, guide, *rows, num_rows=len(session.train))
        finished = session.open(
            prepared.factory,
            guides,
            recorded(options),
            algorithm="normal approximation",
        )
        if finished is not None:
            return finished
        from ppl_lvm.approximation import approximate

        generator = torch.Generator().manual_seed(options.seed)
        result = approximate(prepared.target, method, generator)
        say(result.sentence)
        guide.set_normal(**vars(result.normal))
        run = _as_run(prepared, guide, result)
        return session.close(run, lambda: _held_out_evidence(session, run))


def _prepare(model: Any, data: Any, options: FitOptions) -> _Prepared:
    """Rows and model in double precision."""
    # Imported where a model is served: recording takes modules that other fits do not need.
    from ppl_lvm.approximation.unconstrained import LogDensity

    session = Session(data, options)
    factory = ModelFactory(copy_programs(model)[0], options.settings)
    rows = first_rows(session.train, len(session.train))
    instance = factory.make(rows)
    if session.train.weights is not None and repeats_rows(
        _signature(instance, first_rows(session.train, DECIDE_ROWS)), session.train
    ):
        session.repeat_weighted_rows(f"method={options.method!r}")
        rows = first_rows(session.train, len(session.train))
        instance = factory.make(rows)
    in_double(instance)
    try:
        target = LogDensity(*weighted_rows(instance, rows, session.train.weights))
        target.check()
    except RuntimeError as error:
        if "dtype" not in str(error) and "Float" not in str(error):
            raise
        raise ValueError(
            f"{factory.recipe.name}: it does not run in double precision ({error}). Give its "
            "tensors the dtype of its arguments, as in torch.eye(3).to(x), or use method='svi'."
        ) from None
    return _Prepared(session, factory, instance, rows, target)


def _as_run(prepared: _Prepared, guide: Any, result: "Approximation") -> Run:
    session, record, target = prepared.session, prepared.session.record, prepared.target
    pair = ModelGuidePair(prepared.instance, guide, objectives.objective("ELBO"))
    pair.dtype = target.dtype
    pair.materialize_parameters(*prepared.rows)
    pair.eval_mode()
    N = session.train.total_weight
    log_w = result.log_weights
    bound = float(log_w.mean()) / N
    entry = {
        "seed": session.seed,
        "bound": bound,
        "bound_monte_carlo_error": float(log_w.std() / len(log_w) ** 0.5) / N,
        "held_out": None,
        "held_out_monte_carlo_error": None,
        "steps": 1,
        "seconds": session.seconds,
        "degenerate": None,
        "converged": result.good,
    }
    reliable = not result.k_hat > RELIABLE_K_HAT  # NaN where all weights are equal
    evidence = {
        "log_evidence": result.log_evidence / N,
        "log_evidence_monte_carlo_error": draws_error(log_w.numpy()[None]) / N
        if reliable
        else None,
        "log_evidence_k_hat": result.k_hat,
        "log_evidence_ess": float(log_w.softmax(0).square().sum().reciprocal()),
        "log_evidence_draws": len(log_w),
        "log_evidence_kind": "joint",
    }
    record["objective"] = "ELBO"
    record["restarts"] = [{**entry, "chosen": True}]
    record["results"] = {
        "directory": None,
        **entry,
        **no_evidence(session.evaluation_name),
        **({} if session.held_out is not None else evidence),
        **result.to_json(),
    }
    history: dict[str, list[float]] = {"bound": [bound], "validation_step": []}
    history |= {"validation_bound": [], "learning_rate": []}
    draws = target.constrain(result.thinned())
    return Run(pair, _template(prepared.rows), history, record, draws=draws)


def _held_out_evidence(session: Session, run: Run) -> dict[str, Any]:
    """The log predictive density of the held-out rows, if there are any."""
    if session.held_out is None:
        return {}
    rows = first_rows(session.held_out, len(session.held_out))
    return session.evidence(run.pair, rows, EVIDENCE_PARTICLES, session.held_out.weights)


def _template(rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Rows that are stored with the run: all of them, unless they are very many."""
    numbers = sum(t.numel() for t in rows)
    count = len(rows[0]) if numbers <= TEMPLATE_NUMBERS else DECIDE_ROWS
    return tuple(t[:count] for t in rows)
