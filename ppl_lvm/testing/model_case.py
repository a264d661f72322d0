"""Builds and traces of a model under test."""

import inspect
import math
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

from ppl_lvm.particles.tracing import plate_dim
from ppl_lvm.programs.row_plates import row_plates
from ppl_lvm.programs.sources import GuideFactory, require_arguments
from ppl_lvm.programs.traces import latent_sites, plate_nesting

Batch = tuple[Tensor, ...]

TOLERANCE = 1e-8  # relative, of sums in double precision


def plain_objective(model: Any, guide: Any, batch: Batch, **options: Any) -> ELBO:
    """Pyro's `TraceEnum_ELBO` for a pair with enumerated sites, else `Trace_ELBO`."""
    traces = [poutine.trace(program).get_trace(*batch) for program in (model, guide)]
    sites = [site for trace in traces for site in latent_sites(trace).values()]
    nesting = max(plate_nesting(trace) for trace in traces)
    enumerated = any(site["infer"].get("enumerate") for site in sites)
    return (TraceEnum_ELBO if enumerated else Trace_ELBO)(max_plate_nesting=nesting, **options)


@dataclass(frozen=True)
class Case:
    """The arguments of `check_model`, the batch in double precision."""

    make: Callable[[], Any]
    batch: Batch
    guide: Any
    exact_log_evidence: Callable[..., Tensor] | None
    exact_posterior: Callable[..., Any] | None

    def model(self, *batch: Tensor) -> Any:
        """A new model, initialized from a batch and sized by it."""
        batch = batch or self.batch
        model = self.make()
        if hasattr(model, "initialize"):
            require_arguments(model.initialize, batch, f"{type(model).__name__}.initialize")
            model.initialize(*batch)
        self.trace(model, *batch)
        return model

    def pair(self) -> tuple[Any, Any, ELBO]:
        """A model, its guide, and Pyro's objective for them."""
        model = self.model()
        guide = GuideFactory(self.guide).make(model, self.batch)
        return model, guide, plain_objective(model, guide, self.batch)

    def trace(self, program: Any, *batch: Tensor) -> poutine.Trace:
        return poutine.trace(program).get_trace(*(batch or self.batch))

    def row_plates(self, model: Any) -> frozenset[str]:
        """Names of the model's plates over rows."""
        return row_plates(model, batch=self.batch).names

    def log_joint(self, model: Any, latents: dict[str, Tensor], batch: Batch) -> poutine.Trace:
        """A trace with log-probabilities at these values of the latents."""
        trace = self.trace(poutine.condition(model, data=latents), *batch)
        trace.compute_log_prob()
        return trace

    def is_exact(self, model: Any) -> bool:
        """True if the bound is log p(x): every latent is enumerated in the model."""
        sites = latent_sites(self.trace(model)).values()
        return all(site["infer"].get("enumerate") for site in sites)


def require(holds: bool, model: Any, problem: str) -> None:
    if not holds:
        raise AssertionError(f"{name_of(model)}: {problem}.")


def name_of(model: Any) -> str:
    return str(getattr(model, "__name__", type(model).__name__))


def rebuild(model: nn.Module) -> Any:
    arguments = {}
    for name, argument in inspect.signature(type(model).__init__).parameters.items():
        if name != "self" and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            require(
                hasattr(model, name),
                model,
                f"the constructor's argument {name!r} is not an attribute. Set self.{name}",
            )
            arguments[name] = getattr(model, name)
    return type(model)(**arguments)


def rejection(case: Case, model: Any, batch: Batch, what: str) -> str | None:
    """The message that rejects a batch; None for a finite log p(x, z).

    A new model is initialized from the batch where no `model` is passed.
    """
    name = name_of(case.make() if model is None else model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trace = case.trace(case.model(*batch) if model is None else model, *batch)
            log_joint = to_float(trace.log_prob_sum())
    except ValueError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(
            f"{name}: {what} raises {type(error).__name__}: {error}. Raise a ValueError that names "
            "the problem."
        ) from error
    if math.isfinite(log_joint):
        return None
    raise AssertionError(f"{name}: {what} gives log p(x, z) = {log_joint}. Raise a ValueError.")


def floating(batch: Batch) -> Iterator[tuple[int, Tensor]]:
    return ((i, x) for i, x in enumerate(batch) if x.is_floating_point())


def replace_tensor(batch: Batch, i: int, x: Tensor) -> Batch:
    return (*batch[:i], x, *batch[i + 1 :])


def latent_values(
    trace: poutine.Trace, rows: Tensor | None = None, plates: Collection[str] = ()
) -> dict[str, Tensor]:
    """The latents of a trace; those of some `rows` for local latents, in the `plates` over rows."""
    values = {}
    for name, site in latent_sites(trace).items():
        value, dim = site["value"].detach(), plate_dim(site, plates)
        if rows is not None and dim is not None:
            value = value.index_select(dim - len(site["fn"].event_shape), rows)
        values[name] = value
    return values


def local_log_probs(trace: poutine.Trace, plates: Collection[str]) -> dict[str, float]:
    """log p of each site in the `plates` over rows, summed."""
    return {
        name: to_float(site["log_prob_sum"])
        for name, site in trace.nodes.items()
        if "log_prob_sum" in site and plate_dim(site, plates) is not None
    }


def is_close(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def to_float(value: Any) -> float:
    return float(torch.as_tensor(value).detach())
