"""Will every parameter be trained, and each only as itself?"""

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns, run
from ppl_lvm.programs.dry_run import dry_run


def check_parameters(look: TrialRuns) -> Iterator[Issue]:
    yield from _collisions(look)
    yield from _untrained(look)


def _collisions(look: TrialRuns) -> Iterator[Issue]:
    """One name, two tensors of modules: Pyro's store keeps the first and forgets the second."""
    model, guide = look.standalone
    if model.error or guide.error or pyro.settings.get("module_local_params"):
        return
    ours, theirs = model.parameters(), guide.parameters()
    owned = _owned(look.programs[0]) | _owned(look.programs[1])
    for name in ours.keys() & theirs.keys():
        if ours[name] is theirs[name]:
            continue
        if id(ours[name]) not in owned and id(theirs[name]) not in owned:
            continue  # pyro.param in functions: sharing by name is how it is meant
        yield guide.finding(
            "parameter-collision",
            "warning",
            name,
            f"Model and guide each have a parameter {name!r}.",
            "Under plain pyro.infer.SVI the two share one place in Pyro's store, and only one of "
            "them is trained. (fit keeps them apart.)",
            f"Rename the guide's {name!r}, or pyro.settings.set(module_local_params=True).",
        )


def _owned(program: Any) -> set[int]:
    return {id(p) for p in program.parameters()} if isinstance(program, nn.Module) else set()


def _untrained(look: TrialRuns) -> Iterator[Issue]:
    """Which parameters the bound's graph does not reach, in a run of its own.

    (Running statistics that another run changes would spoil the graph.)
    """
    model, guide = look.programs
    with dry_run(model, guide):
        drawn = run(guide, *look.batch)
        runs = (run(model, *look.batch, values=drawn.trace), drawn)
        if runs[0].error or runs[1].error:
            return
        total = _bound(*runs)
        baselines = _baselines(drawn)
        leaves = [
            {name: leaf for name, leaf in _leaves(*pair).items() if id(leaf) not in baselines}
            for pair in zip(runs, look.programs, strict=True)
        ]
        every = [leaf for named in leaves for leaf in named.values()]
        if not every or total is None:
            return
        reached = _gradients(total, every)
        # If the bound is not finite, its sites are to blame and not their gradients.
        if total.isfinite() and not all(map(_is_finite, reached)):
            yield from _not_finite(runs, every)
    names = [(one, name) for one, named in zip(runs, leaves, strict=True) for name in named]
    for (one, name), gradient in zip(names, reached, strict=True):
        if gradient is None:
            yield one.finding(
                "no-gradient",
                "warning",
                name,
                f"The parameter {name!r} never receives a gradient.",
                "It stays as it was made: something that should use it does not, or a detach(), "
                ".data or torch.no_grad() stands between.",
                f"Use {name!r} in a site, without detach(), .data or torch.no_grad() between; or "
                "remove it, or say requires_grad_(False).",
            )


def _gradients(value: Tensor, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    if not value.requires_grad:
        return (None,) * len(leaves)
    return torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)


def _is_finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(gradient.isfinite().all())


def _not_finite(runs: tuple[TrialRun, TrialRun], leaves: list[Tensor]) -> Iterator[Issue]:
    """The first site whose log-probability is finite while its gradient is not."""
    for one in runs:
        for name, node in one.nodes().items():
            log_prob = _log_prob(node)
            if log_prob is None or all(map(_is_finite, _gradients(log_prob, leaves))):
                continue
            yield one.finding(
                "gradient-not-finite",
                "error",
                name,
                f"log p of {name!r} is finite, but its gradient is not.",
                "A mask or torch.where hides a value and not its gradient: zero times NaN is NaN. "
                "So does the root, or the norm, of zero.",
                "Replace before it is used, not after: obs=x.nan_to_num(1.0) beside "
                ".mask(~x.isnan()), (v + 1e-12).sqrt(), v.clamp(min=1e-6).log().",
            )
            return


def _bound(*runs: TrialRun) -> Tensor | None:
    """All log-probabilities added up: its graph reaches what an objective's would."""
    total = torch.zeros(())
    for one in runs:
        for node in one.nodes().values():
            log_prob = _log_prob(node)
            if log_prob is None:
                return None
            total = total + log_prob.cpu()
    return total


def _log_prob(node: dict[str, Any]) -> Tensor | None:
    """log p of a site, summed, zero where it is masked; None where it cannot be told."""
    if node["mask"] is False:
        return torch.zeros(())
    try:
        log_prob: Tensor = node["fn"].log_prob(node["value"])
    except (ValueError, RuntimeError, NotImplementedError):
        return None
    if isinstance(node["mask"], Tensor):
        log_prob = log_prob.where(node["mask"], 0.0)
    return log_prob.sum()


def _baselines(guide: TrialRun) -> set[int]:
    """Parameters of neural baselines, which learn from a loss of their own."""
    found = set()
    for node in guide.nodes().values():
        network = node["infer"].get("baseline", {}).get("nn_baseline")
        if isinstance(network, nn.Module):
            found |= {id(parameter) for parameter in network.parameters()}
    return found


def _leaves(one: TrialRun, program: Any) -> dict[str, Tensor]:
    """Name -> leaf, of what the run used and of what the module has besides."""
    leaves = {
        name: leaf for name, leaf in one.parameters().items() if leaf.requires_grad and leaf.is_leaf
    }
    known = {id(leaf) for leaf in leaves.values()}
    if isinstance(program, nn.Module):
        for name, leaf in program.named_parameters():
            if leaf.requires_grad and id(leaf) not in known:
                leaves[name.removesuffix("_unconstrained")] = leaf
                known.add(id(leaf))
    return leaves
