"""Contract of a model: the requirements that every model meets."""

import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

from ppl_lvm.checks import check
from ppl_lvm.core.rng import isolated_rng, random_state, set_random_state
from ppl_lvm.programs.minibatch import DATA_PLATE
from ppl_lvm.programs.sources import GuideFactory
from ppl_lvm.programs.traces import latent_sites, plate_nesting

Batch = tuple[Tensor, ...]

# Estimates of the bound, and the standard errors by which their mean may exceed the evidence.
DRAWS, ERRORS = 30, 5.0
# Step of the finite difference, and the relative difference of a correct gradient.
STEP, GRADIENT_TOLERANCE = 1e-6, 1e-4
TOLERANCE = 1e-8  # relative, of sums in double precision


def check_model(
    make: Callable[[], Any],
    batch: Tensor | Sequence[Tensor],
    guide: Any = None,
    exact_log_evidence: Callable[..., Tensor] | None = None,
    exact_posterior: Callable[..., Any] | None = None,
) -> None:
    """Test a model class, or a function that makes models, against the contract of models.

    - Plain Pyro: `SVI` takes finite steps, and `check` reports no error.
    - Constructor arguments are attributes, so that a model can be rebuilt.
    - A state loads into a model that has had no batch.
    - A batch of another width or of integers is used, or rejected by a `ValueError` that says so.
      A missing value is used, or rejected by a `ValueError` that names it.
    - The same seed gives the same parameters and the same draws.
    - Permuting rows and their local latents leaves log p(x, z) as it is.
    - Sums over rows are sums over mini-batches, so that scaling by N/B is unbiased.
    - The gradient of the bound is its finite difference.
    - The bound is at most log p(x), and equal to it without latents, or with the posterior.

    The random state, the default dtype and Pyro's parameter store are restored.

    Args:
        make: called without arguments for each new model.
        batch: a tensor or several, rows first; small.
        guide: a guide, or a builder of guides; None for the toolkit's default.
        exact_log_evidence: called with the model and the batch: log p(x_n) (N,), or of all rows ().
            A `ValueError` means that the batch is too large for it.
        exact_posterior: the exact posterior as a guide, called with the model and the batch.

    Raises:
        AssertionError: with the model's name and the requirement that it fails.
    """
    batch = (batch,) if isinstance(batch, Tensor) else tuple(batch)
    dtype, state = torch.get_default_dtype(), random_state()
    try:
        torch.set_default_dtype(torch.float64)
        double = tuple(x.double() if x.is_floating_point() else x for x in batch)
        case = Case(make, double, guide, exact_log_evidence, exact_posterior)
        for requirement in REQUIREMENTS:
            pyro.set_rng_seed(0)
            with pyro.get_param_store().scope(), torch.enable_grad():
                requirement(case)
    finally:
        set_random_state(state)
        torch.set_default_dtype(dtype)


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
            model.initialize(*batch)
        self.trace(model, *batch)
        return model

    def pair(self) -> tuple[Any, Any, ELBO]:
        """A model, its guide, and Pyro's objective for them."""
        model = self.model()
        guide = GuideFactory(self.guide).make(model, self.batch)
        return model, guide, self.objective(model, guide)

    def objective(self, model: Any, guide: Any) -> ELBO:
        """`TraceEnum_ELBO` for a pair with enumerated sites, else `Trace_ELBO`."""
        traces = [self.trace(model), self.trace(guide)]
        sites = [site for trace in traces for site in latent_sites(trace).values()]
        nesting = max(plate_nesting(trace) for trace in traces)
        if any(site["infer"].get("enumerate") for site in sites):
            return TraceEnum_ELBO(max_plate_nesting=nesting)
        return Trace_ELBO(max_plate_nesting=nesting)

    def trace(self, program: Any, *batch: Tensor) -> poutine.Trace:
        return poutine.trace(program).get_trace(*(batch or self.batch))

    def log_joint(self, model: Any, latents: dict[str, Tensor], batch: Batch) -> poutine.Trace:
        """A trace with log-probabilities at these values of the latents."""
        trace = self.trace(poutine.condition(model, data=latents), *batch)
        trace.compute_log_prob()
        return trace

    def is_exact(self, model: Any) -> bool:
        """True if the bound is log p(x): every latent is enumerated in the model."""
        sites = latent_sites(self.trace(model)).values()
        return all(site["infer"].get("enumerate") for site in sites)


def plain_svi(case: Case) -> None:
    """Plain Pyro takes finite steps."""
    model, guide, objective = case.pair()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-4}), objective)
    try:
        losses = [svi.step(*case.batch) for _ in range(2)]
    except Exception as error:
        raise AssertionError(
            f"{_name(model)}: pyro's SVI raises {type(error).__name__}: {error}"
        ) from error
    _require(all(map(math.isfinite, losses)), model, f"pyro's SVI gives the losses {losses}")


def no_errors(case: Case) -> None:
    """`check` reports no error."""
    model, guide, _ = case.pair()
    issues = check(model, guide, *case.batch)
    _require(not issues.errors, model, f"check(model, guide, *batch) reports:\n{issues}")


def rebuildable(case: Case) -> None:
    """Constructor arguments are attributes."""
    model = case.model()
    if isinstance(model, nn.Module):
        _rebuilt(model)


def state_loads(case: Case) -> None:
    """A state loads into a model without a batch."""
    model = case.model()
    if not isinstance(model, nn.Module):
        return
    latents = _values(case.trace(model))
    expected = _number(case.log_joint(model, latents, case.batch).log_prob_sum())
    for new in (case.make(), _rebuilt(model)):
        try:
            new.load_state_dict(model.state_dict())
        except RuntimeError as error:
            _require(False, model, f"its state does not load before the first batch: {error}")
        loaded = _number(case.log_joint(new, latents, case.batch).log_prob_sum())
        _require(_close(loaded, expected), model, f"log p is {expected}, {loaded} once loaded")


def wrong_width(case: Case) -> None:
    """A tensor with one column more is rejected."""
    for i, x in enumerate(case.batch):
        model = case.model()
        if x.dim() < 2 or not isinstance(model, nn.Module):
            continue
        wider = torch.cat([x, x[..., -1:]], -1)
        message = _refusal(case, model, _replace(case.batch, i, wider), f"{tuple(wider.shape)}")
        parts = (type(model).__name__, str(wider.shape[-1]))
        _require(
            message is not None and all(part in message for part in parts),
            model,
            f"tensor {i} of shape {tuple(wider.shape)} in place of {tuple(x.shape)} gives "
            f"{message!r}. Raise a ValueError with the model's name and the width",
        )


def missing_values(case: Case) -> None:
    """A missing value is used, or named."""
    for i, x in _floating(case.batch):
        gap = x.clone()
        gap[(0,) * x.dim()] = torch.nan
        message = _refusal(case, None, _replace(case.batch, i, gap), "a missing value")
        _require(
            message is None or re.search(r"row 0|missing|NaN|nan", message) is not None,
            case.make(),
            f"a missing value in row 0 of tensor {i} gives {message!r}. Name it",
        )


def integers(case: Case) -> None:
    """Integers are used, or rejected by their dtype."""
    for i, x in _floating(case.batch):
        message = _refusal(case, None, _replace(case.batch, i, x.long()), "integers")
        _require(
            message is None or "float" in message,
            case.make(),
            f"integers in tensor {i} give {message!r}. Take x.float(), or ask for it",
        )


def same_seed(case: Case) -> None:
    """The same seed gives the same parameters and draws."""
    traces, states = [], []
    for _ in range(2):
        pyro.set_rng_seed(1)
        model = case.model()
        states.append(model.state_dict() if isinstance(model, nn.Module) else {})
        traces.append(_values(case.trace(model)))
    for what, (first, second) in {"parameters": states, "draws": traces}.items():
        same = first.keys() == second.keys() and all(
            torch.equal(first[name], second[name]) for name in first
        )
        _require(same, model, f"its {what} differ between two runs of one seed")


def permutation(case: Case) -> None:
    """Permuting rows leaves log p(x, z) as it is."""
    model = case.model()
    trace = case.trace(model)
    order = torch.randperm(len(case.batch[0]))
    rows = tuple(x[order] for x in case.batch)
    expected = _number(case.log_joint(model, _values(trace), case.batch).log_prob_sum())
    permuted = _number(case.log_joint(model, _values(trace, order), rows).log_prob_sum())
    _require(
        _close(permuted, expected),
        model,
        f"log p(x, z) is {expected}, and {permuted} for the same rows in another order",
    )


def minibatches(case: Case) -> None:
    """Sums over rows are sums over mini-batches."""
    model = case.model()
    trace = case.trace(model)
    full = _local_log_probs(case.log_joint(model, _values(trace), case.batch))
    parts: dict[str, float] = dict.fromkeys(full, 0.0)
    for rows in torch.arange(len(case.batch[0])).split([5, len(case.batch[0]) - 5]):
        part = case.log_joint(model, _values(trace, rows), tuple(x[rows] for x in case.batch))
        for name, log_prob in _local_log_probs(part).items():
            parts[name] += log_prob
    for name, log_prob in full.items():
        _require(
            _close(parts[name], log_prob),
            model,
            f"log p of site {name!r} is {log_prob} for all rows, and {parts[name]} summed over "
            "two mini-batches: a row's term depends on the other rows",
        )


def gradient(case: Case) -> None:
    """The gradient of the bound is its finite difference."""
    model, guide, objective = case.pair()
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    if not parameters:
        return
    pyro.set_rng_seed(2)
    directions = [torch.randn_like(p) for p in parameters]
    for p in parameters:
        p.grad = None
    with isolated_rng(3):
        objective.loss_and_grads(model, guide, *case.batch)
    products = [
        (p.grad * v).sum()
        for p, v in zip(parameters, directions, strict=True)
        if p.grad is not None
    ]
    slope = float(sum(products))
    ends = []
    for sign in (1.0, -2.0, 1.0):  # up, down, back
        with torch.no_grad():
            for p, v in zip(parameters, directions, strict=True):
                p.add_(sign * STEP * v)
        with isolated_rng(3):
            ends.append(objective.loss(model, guide, *case.batch))
    difference = (ends[0] - ends[1]) / (2 * STEP)
    scale = max(abs(slope), abs(difference), sum(abs(float(p)) for p in products), 1.0)
    _require(
        abs(slope - difference) <= GRADIENT_TOLERANCE * scale,
        model,
        f"the bound's slope along a direction is {difference:g}, its gradient says {slope:g}",
    )


def bound_below_evidence(case: Case) -> None:
    """The bound is at most log p(x), and equal to it where the guide is the posterior."""
    model, guide, objective = case.pair()
    evidence = _evidence(case, model)
    if evidence is None:
        return
    losses = torch.tensor([objective.loss(model, guide, *case.batch) for _ in range(DRAWS)])
    bound, error = -losses.mean().item(), losses.std().item() / DRAWS**0.5
    _require(
        bound <= evidence + ERRORS * error + TOLERANCE * abs(evidence),
        model,
        f"the bound {bound:.6g} ± {error:.2g} exceeds log p(x) = {evidence:.6g}",
    )
    exact = []
    if case.is_exact(model):
        exact.append(bound)
    if case.exact_posterior is not None:
        posterior = _bind(case.exact_posterior, model)
        exact.append(-Trace_ELBO().loss(model, posterior, *case.batch))
    for value in exact:
        _require(
            abs(value - evidence) <= 1e-6 * max(1.0, abs(evidence)),
            model,
            f"the bound {value:.8g} is not log p(x) = {evidence:.8g}, though its guide is exact",
        )


def exact_gradient(case: Case) -> None:
    """The bound's gradient is that of log p(x) where the bound is exact."""
    model, guide, objective = case.pair()
    if case.exact_log_evidence is None or not case.is_exact(model):
        return
    parameters = dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
    objective.loss_and_grads(model, guide, *case.batch)
    bound = {name: p.grad for name, p in parameters.items()}
    for p in parameters.values():
        p.grad = None
    if parameters:
        (-case.exact_log_evidence(model, *case.batch).sum()).backward()
    for name, p in parameters.items():
        _require(
            torch.allclose(_or_zero(bound[name], p), _or_zero(p.grad, p), rtol=1e-6, atol=1e-8),
            model,
            f"the bound's gradient for {name!r} is not that of log p(x)",
        )


REQUIREMENTS: tuple[Callable[[Case], None], ...] = (
    plain_svi,
    no_errors,
    rebuildable,
    state_loads,
    wrong_width,
    missing_values,
    integers,
    same_seed,
    permutation,
    minibatches,
    gradient,
    bound_below_evidence,
    exact_gradient,
)


def _require(holds: bool, model: Any, problem: str) -> None:
    if not holds:
        raise AssertionError(f"{_name(model)}: {problem}.")


def _name(model: Any) -> str:
    return str(getattr(model, "__name__", type(model).__name__))


def _rebuilt(model: nn.Module) -> Any:
    arguments = {}
    for name, argument in inspect.signature(type(model).__init__).parameters.items():
        if name != "self" and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            _require(
                hasattr(model, name),
                model,
                f"the constructor's argument {name!r} is not an attribute. Set self.{name}",
            )
            arguments[name] = getattr(model, name)
    return type(model)(**arguments)


def _refusal(case: Case, model: Any, batch: Batch, what: str) -> str | None:
    """The message that rejects a batch; None for a finite log p(x, z).

    A new model is initialized from the batch where no `model` is passed.
    """
    name = _name(case.make() if model is None else model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trace = case.trace(case.model(*batch) if model is None else model, *batch)
            log_joint = _number(trace.log_prob_sum())
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


def _floating(batch: Batch) -> Iterator[tuple[int, Tensor]]:
    return ((i, x) for i, x in enumerate(batch) if x.is_floating_point())


def _replace(batch: Batch, i: int, x: Tensor) -> Batch:
    return (*batch[:i], x, *batch[i + 1 :])


def _data_dim(site: dict[str, Any]) -> int | None:
    """The dimension of the plate over rows in a site's batch shape."""
    dims = [frame.dim for frame in site["cond_indep_stack"] if frame.name == DATA_PLATE]
    return dims[0] if dims else None


def _values(trace: poutine.Trace, rows: Tensor | None = None) -> dict[str, Tensor]:
    """The latents of a trace; those of some `rows` for local latents."""
    values = {}
    for name, site in latent_sites(trace).items():
        value, dim = site["value"].detach(), _data_dim(site)
        if rows is not None and dim is not None:
            value = value.index_select(dim - len(site["fn"].event_shape), rows)
        values[name] = value
    return values


def _local_log_probs(trace: poutine.Trace) -> dict[str, float]:
    """log p of each site in the plate over rows, summed."""
    return {
        name: _number(site["log_prob_sum"])
        for name, site in trace.nodes.items()
        if "log_prob_sum" in site and _data_dim(site) is not None
    }


def _close(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _number(value: Any) -> float:
    return float(torch.as_tensor(value).detach())


def _evidence(case: Case, model: Any) -> float | None:
    if case.exact_log_evidence is None:
        return None
    try:
        return _number(case.exact_log_evidence(model, *case.batch).sum())
    except ValueError:
        return None


def _bind(posterior: Callable[..., Any], model: Any) -> Callable[..., Any]:
    def guide(*batch: Tensor) -> Any:
        return posterior(model, *batch)

    return guide


def _or_zero(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient
