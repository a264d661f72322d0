"""Mean, variance and bias of gradient estimates, per parameter group.

If the guide has one finite site the mean is exact: `ForcedSite` replaces its draws by every tuple
of K values, and the gradients are averaged with their probabilities.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from scipy.stats import t
from torch import Tensor, nn

from ppl_lvm.benchmarks.gradient_suite import exact

Step = Callable[..., float]
Leaves = Mapping[str, Tensor]
MANY = 100


class ForcedSite(Messenger):
    """Set every unobserved site to this value."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not poutine.util.site_is_subsample(msg):
            msg["value"], msg["done"] = self.value, True


def gradient(step: Step, batch: tuple[Tensor, ...], leaves: Leaves) -> tuple[Tensor, float]:
    """One gradient of the bound, (P,), and the bound, nats, summed over rows."""
    for leaf in leaves.values():
        leaf.grad = None
    loss = step(*batch)
    parts = [torch.zeros_like(v) if v.grad is None else v.grad for v in leaves.values()]
    return -torch.cat([part.flatten() for part in parts]), -loss


def steady(step: Step, objective: Any) -> Step:
    """The step with the objective's learned state restored around every draw.

    The draws are then identically distributed; a fixed baseline keeps them unbiased.
    """
    if not isinstance(objective, nn.Module) or not objective.state_dict():
        return step
    state = copy.deepcopy(objective.state_dict())

    def restored(*batch: Tensor) -> float:
        objective.load_state_dict(state)
        loss = step(*batch)
        objective.load_state_dict(state)
        return loss

    return restored


def sample(
    step: Step, batch: tuple[Tensor, ...], leaves: Leaves, repeats: int
) -> tuple[Tensor, Tensor]:
    """Independent gradients (R, P) and bounds (R,)."""
    draws = [gradient(step, batch, leaves) for _ in range(repeats)]
    return torch.stack([g for g, _ in draws]), torch.tensor([bound for _, bound in draws])


def enumerate_draws(
    step: Step, x: Tensor, leaves: Leaves, states: Tensor, log_q: Tensor, num_particles: int
) -> tuple[Tensor, float]:
    """Exact mean gradient (P,) and bound, by all Sᴷ tuples of each row.

    The draws of a row affect its term only, so rows are enumerated separately.

    Args:
        states: values of the site, (S, 1, ...); log_q: their log-probabilities, (S, B).
    """
    mean, bound = torch.zeros(()), 0.0
    for b in range(len(x)):
        row = (x[b : b + 1],)
        gradient(step, row, leaves)  # estimators analyze a pair at the first call
        for draw in exact.tuples(len(states), num_particles).T:
            probability = log_q[draw, b].sum().exp().item()
            with ForcedSite(states[draw]):
                one, value = gradient(step, row, leaves)
            mean, bound = mean + probability * one, bound + probability * value
    return mean, bound


def groups(model: Any, guide: Any, batch: tuple[Tensor, ...], leaves: Leaves) -> dict[str, Tensor]:
    """Positions of the parameters in the vector, by the densities that depend on them.

    "model" for log p, "guide z" for the guide's sites whose log q depends on them at fixed draws.
    Unused parameters are omitted.
    """
    used: dict[str, list[str]] = {name: [] for name in leaves}
    with poutine.block():
        guide_trace = poutine.trace(guide).get_trace(*batch)
        values = {
            name: site["value"].detach()
            for name, site in guide_trace.nodes.items()
            if site["type"] == "sample" and not site["is_observed"]
        }
        fixed = poutine.trace(poutine.condition(guide, data=values)).get_trace(*batch)
        joint = poutine.trace(poutine.condition(model, data=values)).get_trace(*batch)
        joint.compute_log_prob()
        fixed.compute_log_prob(lambda name, site: name in values)
    of_guide = _dependencies({name: fixed.nodes[name]["log_prob_sum"] for name in values}, leaves)
    of_model = _dependencies({"model": joint.log_prob_sum()}, leaves)
    for name, sites in of_guide.items():
        used[name] = [f"guide {', '.join(sites)}"] if sites else []
    for name, sites in of_model.items():
        used[name] += sites
    position, positions = 0, dict[str, list[int]]()
    for name, leaf in leaves.items():
        if used[name]:
            group = positions.setdefault(" and ".join(used[name]), [])
            group.extend(range(position, position + leaf.numel()))
        position += leaf.numel()
    return {name: torch.tensor(indices) for name, indices in positions.items()}


def _dependencies(values: Mapping[str, Any], leaves: Leaves) -> dict[str, list[str]]:
    """For each parameter the names of the values that depend on it."""
    names: dict[str, list[str]] = {name: [] for name in leaves}
    for value_name, value in values.items():
        if not isinstance(value, Tensor) or not value.requires_grad:
            continue
        slopes = torch.autograd.grad(
            value, list(leaves.values()), allow_unused=True, retain_graph=True
        )
        for name, slope in zip(leaves, slopes, strict=True):
            if slope is not None:
                names[name].append(value_name)
    return names


@dataclass(frozen=True)
class Judgment:
    """Statistics of one estimator on one group of parameters.

    Attributes:
        bias: |E g - target| / |target|.
        error: its standard error; 0 if the mean is a finite sum.
        biased: the p-value of the bias is below 1e-4.
        variance: Σ over the group of Var g.
        snr: |E g| / sqrt(variance).
        zero: every draw is exactly 0 where the target is not.
    """

    bias: float
    error: float
    biased: bool
    variance: float
    snr: float
    zero: bool


def judge(
    draws: Tensor, mean: Tensor | None, target: Tensor, reference: Tensor | None = None
) -> Judgment:
    """Compare draws (R, G), or their exact mean (G,), with the target (G,).

    Args:
        reference: the draws (n, G) whose mean the target is; None if it is exact.
    """
    size = target.norm().item()
    variance = draws.var(0)
    if mean is None:
        mean = draws.mean(0)
        error = (variance / len(draws) + _error(reference, target)).sqrt()
        biased = _is_biased(draws, target, reference)
    else:
        error = torch.zeros_like(target)
        biased = (mean - target).norm().item() > 1e-5 * size
    total, norm = variance.sum().item(), mean.norm().item()
    return Judgment(
        bias=(mean - target).norm().item() / size if size else math.nan,
        error=error.norm().item() / size if size else math.nan,
        biased=biased,
        variance=total,
        snr=norm / math.sqrt(total) if total else (math.inf if norm else 0.0),
        zero=bool((draws == 0).all()) and size > 0,
    )


def _error(reference: Tensor | None, like: Tensor) -> Tensor:
    """Squared standard error of the reference's mean, (G,)."""
    return torch.zeros_like(like) if reference is None else reference.var(0) / len(reference)


def _is_biased(draws: Tensor, target: Tensor, reference: Tensor | None) -> bool:
    """Test the mean against the target: True if the p-value is below 1e-4.

    Few parameters are tested separately. Of many, some are almost always 0, and the mean is not
    normal: there the direction of the target and random sign vectors are tested.
    """
    if len(target) > MANY:
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (16, len(target)), generator=generator) * 2.0 - 1.0
        directions = torch.cat([target.unsqueeze(0), signs.to(target)]).T  # (G, 17)
        draws, target = draws @ directions, target @ directions
        reference = None if reference is None else reference @ directions
    error = (draws.var(0) / len(draws) + _error(reference, target)).sqrt()
    floor = 1e-6 * target.norm().item() + 1e-300
    surprise = ((draws.mean(0) - target).abs() / error.clamp_min(floor)).max().item()
    # Student's t, because the variance is estimated.
    return bool(2 * t.sf(surprise, len(draws) - 1) * len(target) < 1e-4)


def local_parameters() -> Any:
    """Module-local parameters while a benchmark runs."""
    return pyro.settings.context(module_local_params=True)
