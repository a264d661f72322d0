"""Check that every parameter receives a finite gradient."""

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_lvm.checks.enumeration import enumerated_nodes, marginal_loss, over_values
from ppl_lvm.checks.issues import Issue
from ppl_lvm.checks.trial_runs import TrialRun, TrialRuns, run_program
from ppl_lvm.programs.dry_run import dry_run


def check_parameters(runs: TrialRuns, known: list[Issue]) -> Iterator[Issue]:
    """Names of two parameters, missing gradients, gradients that are not finite."""
    yield from _collisions(runs)
    yield from _untrained(runs)


def _collisions(runs: TrialRuns) -> Iterator[Issue]:
    """Two tensors of modules with one name: Pyro's store keeps only the first."""
    model, guide = runs.standalone
    if model.error or guide.error or pyro.settings.get("module_local_params"):
        return
    in_model, in_guide = model.parameters(), guide.parameters()
    owned = _owned(runs.programs[0]) | _owned(runs.programs[1])
    for name in [n for n in in_model if n in in_guide]:
        if in_model[name] is in_guide[name]:
            continue
        if id(in_model[name]) not in owned and id(in_guide[name]) not in owned:
            continue  # pyro.param in functions: shared by name on purpose
        yield guide.issue(
            "parameter-collision",
            "warning",
            name,
            f"Model and guide each have a parameter {name!r}.",
            "Under plain pyro.infer.SVI the two share one entry of Pyro's store, and only one of "
            "them is trained. (fit keeps them separate.)",
            f"Rename the guide's {name!r}, or pyro.settings.set(module_local_params=True).",
        )


def _owned(program: Any) -> set[int]:
    return {id(p) for p in program.parameters()} if isinstance(program, nn.Module) else set()


def _untrained(runs: TrialRuns) -> Iterator[Issue]:
    """Parameters that the graph of the bound does not reach.

    In a separate run, because a later run may change running statistics in place.
    """
    model, guide = runs.programs
    with dry_run(model, guide):
        guide_trial = run_program(guide, *runs.batch)
        model_trial = run_program(model, *runs.batch, values=guide_trial.trace)
        pair = (model_trial, guide_trial)
        if pair[0].error or pair[1].error:
            return
        total = _bound(*pair)
        leaves = [_leaves(*each) for each in zip(pair, runs.programs, strict=True)]
        every = [leaf for named in leaves for leaf in named.values()]
        if not every or total is None:
            return
        reached = _gradients(total + _baselines(guide_trial), every)
        sites = [(trial, trial.nodes()) for trial in pair]
        bound, gradients = total, reached
        if (nodes := enumerated_nodes(runs)) is not None:
            # Summed over its values, the bound is finite although a drawn value is impossible.
            sites[0] = model_trial, nodes
            bound = _marginal(runs)
            gradients = _gradients(bound, every)
        # If the bound is not finite, that is the fault, and not its gradient.
        if bound.isfinite() and not all(map(_is_finite, gradients)):
            yield from _not_finite(sites, every, runs)
    names = [(trial, name) for trial, named in zip(pair, leaves, strict=True) for name in named]
    for (trial, name), gradient in zip(names, reached, strict=True):
        if gradient is None:
            yield trial.issue(
                "no-gradient",
                "warning",
                name,
                f"The parameter {name!r} never receives a gradient.",
                "It keeps its initial value: no site uses it, or only behind a detach(), .data or "
                "torch.no_grad().",
                f"Use {name!r} in a site, without detach(), .data or torch.no_grad(); or "
                "remove it, or call requires_grad_(False).",
            )


def _gradients(value: Tensor, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    if not value.requires_grad:
        return (None,) * len(leaves)
    return torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)


def _is_finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(gradient.isfinite().all())


def _marginal(runs: TrialRuns) -> Tensor:
    """The bound with the enumerated sites summed out; NaN where it is not defined."""
    try:
        return torch.as_tensor(marginal_loss(runs))
    except Exception:  # every exception of a user's program is an issue of a later check
        return torch.tensor(torch.nan)


def _not_finite(
    sites: list[tuple[TrialRun, dict[str, dict[str, Any]]]], leaves: list[Tensor], runs: TrialRuns
) -> Iterator[Issue]:
    """The first site whose log-probability is finite while its gradient is not."""
    for trial, nodes in sites:
        for name, node in nodes.items():
            log_prob = _log_prob(node)
            if log_prob is None:
                continue
            log_prob = over_values(log_prob, runs).sum()
            if all(map(_is_finite, _gradients(log_prob, leaves))):
                continue
            yield trial.issue(
                "gradient-not-finite",
                "error",
                name,
                f"log p of {name!r} is finite, but its gradient is not.",
                "A mask or torch.where hides a value but not its gradient: zero times NaN is NaN. "
                "The root and the norm of zero have no gradient either.",
                "Replace it before it is used, not after: obs=x.nan_to_num(1.0) beside "
                ".mask(~x.isnan()) (or ppl_lvm.authoring.without_missing), (v + 1e-12).sqrt(), "
                "v.clamp(min=1e-6).log().",
            )
            return


def _bound(*runs: TrialRun) -> Tensor | None:
    """Sum of all log-probabilities: its graph reaches the parameters of every objective."""
    total = torch.zeros(())
    for trial in runs:
        for node in trial.nodes().values():
            log_prob = _log_prob(node)
            if log_prob is None:
                return None
            total = total + log_prob.sum().cpu()
    return total


def _log_prob(node: dict[str, Any]) -> Tensor | None:
    """log p of a site, zero where it is masked; None where it is not defined."""
    if node["mask"] is False:
        return torch.zeros(())
    try:
        log_prob: Tensor = node["fn"].log_prob(node["value"])
    except (ValueError, RuntimeError, NotImplementedError):
        return None
    if isinstance(node["mask"], Tensor):
        log_prob = log_prob.where(node["mask"], 0.0)
    return log_prob


def _baselines(guide: TrialRun) -> Tensor:
    """Sum of the baselines of TraceGraph_ELBO, which have a separate loss."""
    total = torch.zeros(())
    for node in guide.nodes().values():
        baseline = node["infer"].get("baseline", {})
        values = [baseline.get("baseline_value")]
        if callable(network := baseline.get("nn_baseline")):
            try:
                values.append(network(baseline.get("nn_baseline_input")))
            except Exception:  # the objective raises it
                continue
        for value in values:
            if isinstance(value, Tensor):
                total = total + value.sum().cpu()
    return total


def _leaves(trial: TrialRun, program: Any) -> dict[str, Tensor]:
    """Name -> leaf, of parameters that the run used and of others in the module."""
    leaves = {
        name: leaf
        for name, leaf in trial.parameters().items()
        if leaf.requires_grad and leaf.is_leaf
    }
    known = {id(leaf) for leaf in leaves.values()}
    if isinstance(program, nn.Module):
        for name, leaf in program.named_parameters():
            if leaf.requires_grad and id(leaf) not in known:
                leaves[name.removesuffix("_unconstrained")] = leaf
                known.add(id(leaf))
    return leaves
