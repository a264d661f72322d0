"""Contract of a model: the requirements that every model meets."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from ppl_lvm.checks import check
from ppl_lvm.core.public_calls import public_call
from ppl_lvm.core.rng import isolated_rng
from ppl_lvm.core.validate import ProgramSource
from ppl_lvm.testing.model_case import (
    TOLERANCE,
    Case,
    floating,
    is_close,
    latent_values,
    local_log_probs,
    name_of,
    rebuild,
    rejection,
    replace_tensor,
    require,
    to_float,
)

# Estimates of the bound, and the standard errors by which their mean may exceed the evidence.
DRAWS, ERRORS = 30, 5.0
# Step of the finite difference, and the relative difference of a correct gradient.
STEP, GRADIENT_TOLERANCE = 1e-6, 1e-4


@public_call
def check_model(
    make: Callable[[], Any],
    batch: Tensor | Sequence[Tensor],
    guide: ProgramSource | None = None,
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
    if not all(x.dim() and len(x) for x in batch):
        raise ValueError("check_model: batch: a tensor has no rows. Pass some typical rows.")
    torch.set_default_dtype(torch.float64)
    double = tuple(x.double() if x.is_floating_point() else x for x in batch)
    case = Case(make, double, guide, exact_log_evidence, exact_posterior)
    for requirement in REQUIREMENTS:
        pyro.set_rng_seed(0)
        with pyro.get_param_store().scope(), torch.enable_grad():
            requirement(case)


def plain_svi(case: Case) -> None:
    """Plain Pyro takes finite steps."""
    model, guide, objective = case.pair()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-4}), objective)
    try:
        losses = [svi.step(*case.batch) for _ in range(2)]
    except Exception as error:
        raise AssertionError(
            f"{name_of(model)}: pyro's SVI raises {type(error).__name__}: {error}"
        ) from error
    require(all(map(math.isfinite, losses)), model, f"pyro's SVI gives the losses {losses}")


def no_errors(case: Case) -> None:
    """`check` reports no error."""
    model, guide, _ = case.pair()
    issues = check(model, guide, *case.batch)
    require(not issues.errors, model, f"check(model, guide, *batch) reports:\n{issues}")


def rebuildable(case: Case) -> None:
    """Constructor arguments are attributes."""
    model = case.model()
    if isinstance(model, nn.Module):
        rebuild(model)


def state_loads(case: Case) -> None:
    """A state loads into a model without a batch."""
    model = case.model()
    if not isinstance(model, nn.Module):
        return
    latents = latent_values(case.trace(model))
    expected = to_float(case.log_joint(model, latents, case.batch).log_prob_sum())
    for new in (case.make(), rebuild(model)):
        try:
            new.load_state_dict(model.state_dict())
        except RuntimeError as error:
            require(False, model, f"its state does not load before the first batch: {error}")
        loaded = to_float(case.log_joint(new, latents, case.batch).log_prob_sum())
        require(is_close(loaded, expected), model, f"log p is {expected}, {loaded} once loaded")


def wrong_width(case: Case) -> None:
    """A tensor with one column more is rejected."""
    for i, x in enumerate(case.batch):
        model = case.model()
        if x.dim() < 2 or not isinstance(model, nn.Module):
            continue
        wider = torch.cat([x, x[..., -1:]], -1)
        message = rejection(
            case, model, replace_tensor(case.batch, i, wider), f"{tuple(wider.shape)}"
        )
        parts = (type(model).__name__, str(wider.shape[-1]))
        require(
            message is not None and all(part in message for part in parts),
            model,
            f"tensor {i} of shape {tuple(wider.shape)} in place of {tuple(x.shape)} gives "
            f"{message!r}. Raise a ValueError with the model's name and the width",
        )


def missing_values(case: Case) -> None:
    """A missing value is used, or named."""
    for i, x in floating(case.batch):
        gap = x.clone()
        gap[(0,) * x.dim()] = torch.nan
        message = rejection(case, None, replace_tensor(case.batch, i, gap), "a missing value")
        require(
            message is None or re.search(r"row 0|missing|NaN|nan", message) is not None,
            case.make(),
            f"a missing value in row 0 of tensor {i} gives {message!r}. Name it",
        )


def integers(case: Case) -> None:
    """Integers are used, or rejected by their dtype."""
    for i, x in floating(case.batch):
        message = rejection(case, None, replace_tensor(case.batch, i, x.long()), "integers")
        require(
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
        traces.append(latent_values(case.trace(model)))
    for what, (first, second) in {"parameters": states, "draws": traces}.items():
        same = first.keys() == second.keys() and all(
            torch.equal(first[name], second[name]) for name in first
        )
        require(same, model, f"its {what} differ between two runs of one seed")


def permutation(case: Case) -> None:
    """Permuting rows leaves log p(x, z) as it is."""
    model = case.model()
    trace = case.trace(model)
    plates = case.row_plates(model)
    order = torch.randperm(len(case.batch[0]))
    rows = tuple(x[order] for x in case.batch)
    expected = to_float(case.log_joint(model, latent_values(trace), case.batch).log_prob_sum())
    permuted = to_float(
        case.log_joint(model, latent_values(trace, order, plates), rows).log_prob_sum()
    )
    require(
        is_close(permuted, expected),
        model,
        f"log p(x, z) is {expected}, and {permuted} for the same rows in another order",
    )


def minibatches(case: Case) -> None:
    """Sums over rows are sums over mini-batches."""
    model = case.model()
    trace = case.trace(model)
    plates = case.row_plates(model)
    full = local_log_probs(case.log_joint(model, latent_values(trace), case.batch), plates)
    parts: dict[str, float] = dict.fromkeys(full, 0.0)
    for rows in torch.arange(len(case.batch[0])).split([5, len(case.batch[0]) - 5]):
        batch = tuple(x[rows] for x in case.batch)
        part = case.log_joint(model, latent_values(trace, rows, plates), batch)
        for name, log_prob in local_log_probs(part, plates).items():
            parts[name] += log_prob
    for name, log_prob in full.items():
        require(
            is_close(parts[name], log_prob),
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
    require(
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
    require(
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
        require(
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
        require(
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


def _evidence(case: Case, model: Any) -> float | None:
    if case.exact_log_evidence is None:
        return None
    try:
        return to_float(case.exact_log_evidence(model, *case.batch).sum())
    except ValueError:
        return None


def _bind(posterior: Callable[..., Any], model: Any) -> Callable[..., Any]:
    def guide(*batch: Tensor) -> Any:
        return posterior(model, *batch)

    return guide


def _or_zero(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient
