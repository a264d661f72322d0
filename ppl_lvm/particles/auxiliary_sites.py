"""Auxiliary sites: sites of the guide that the model lacks.

A guide that draws a and then z | a has the density q(z) = ∫ q(a) q(z | a) da. The log-weight

    log p(x, z) - log q(a) - log q(z | a)

exceeds a bound by the conditional entropy of a given z, on average (Agakov, Barber 2004. An
auxiliary variational method). It is right in four cases:

- The model samples a too, from a reverse density r(a | x, z).
- The guide has a `pyro.factor`, which may hold -log r(a | x, z).
- The site is masked, `.mask(False)`: then r is the guide's density of a, which cancels.
- a determines the model's latents one to one: each is a point `Delta(f(a), log_density=L)` with
  L = -log |det ∂f/∂a|. Pyro's automatic guides are of this kind.
"""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Unit
from torch import Tensor
from torch.distributions import biject_to

from ppl_lvm.core.distributions import innermost, is_discrete, is_masked_out, is_point
from ppl_lvm.particles.tracing import ReplayValues, Sites, trace_program

_MOST_DERIVATIVES = 256  # of one point: a guide of a large network is not differentiated


def auxiliary_problem(
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sites: Sites,
    latents: Sites,
) -> tuple[str, str, str] | None:
    """(site, problem, remedy) of an auxiliary site in none of the four cases, or None.

    Args:
        guide, args, kwargs: the guide and its arguments; it runs once more.
        sites: scored sites of one run of the guide.
        latents: latent sites of the model replayed on it.
    """
    extra = [
        name
        for name, site in sites.items()
        if site["infer"].get("is_auxiliary")
        and name not in latents
        and not is_point(site["fn"])
        and not (site["mask"] is False or is_masked_out(site["fn"]))
    ]
    if not extra or any(isinstance(innermost(s["fn"]), Unit) for s in sites.values()):
        return None
    leaves = {name: _leaf(sites[name]["value"]) for name in extra}
    drawn = {name: s["value"].detach() for name, s in sites.items() if not is_point(s["fn"])}
    with torch.enable_grad():
        replay = ReplayValues({**drawn, **leaves})
        again = trace_program(guide, args, kwargs, particles=None, nesting=0, replay=replay)
        points = {n: s for n, s in again.items() if n in latents and is_point(s["fn"])}
        for name in extra:
            if not any(_depends(innermost(s["fn"]).v, leaves[name]) for s in points.values()):
                return _without_counterpart(name)
            if is_discrete(sites[name]["fn"]) and (point := _continuous(points, latents)):
                return (
                    name,
                    f"The guide's auxiliary site '{name}' is discrete and its point '{point}' "
                    "is a value of a continuous latent, so that log p - log q is the ratio of a "
                    "density and a probability.",
                    f"Sample '{point}' from a continuous distribution given '{name}', or "
                    f"'{name}' in the model too.",
                )
        size = sum(leaf.numel() for leaf in leaves.values())
        if size != (image := sum(_num_values(n, s, latents) for n, s in points.items())):
            return (
                extra[0],
                f"The guide's auxiliary sites {sorted(extra)} have {size} values, but the points "
                f"{sorted(points)} that depend on them have {image}, so that log q is not the "
                "density of these points.",
                "Make the points one-to-one functions of the auxiliary sites.",
            )
        return _wrong_density(leaves, points, latents)


def _without_counterpart(name: str) -> tuple[str, str, str]:
    return (
        name,
        f"The guide's site '{name}' is auxiliary: the model does not sample it and no latent "
        "is a function of it, so that log p - log q would be above a bound on log p(x).",
        f"Sample '{name}' in the model too, from a density given the latents, or leave its "
        f"density out: pyro.sample('{name}', dist.….mask(False), "
        "infer={'is_auxiliary': True}).",
    )


def _continuous(points: Sites, latents: Sites) -> str | None:
    return next((n for n in points if is_discrete(latents[n]["fn"]) is False), None)


def _leaf(value: Tensor) -> Tensor:
    value = value.detach().clone()
    return value.requires_grad_() if value.is_floating_point() else value


def _depends(value: Tensor, leaf: Tensor) -> bool:
    if not leaf.is_floating_point() or not value.is_floating_point():
        return True  # integers have no gradient
    if not value.requires_grad:
        return False
    (grad,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True, allow_unused=True)
    return grad is not None


def _num_values(name: str, site: Any, latents: Sites) -> int:
    """Number of unconstrained values of a point."""
    shape, fn = innermost(site["fn"]).v.shape, latents[name]["fn"]
    transform = _bijection(fn)
    return (shape if transform is None else torch.Size(transform.inverse_shape(shape))).numel()


def _bijection(fn: Any) -> Any:
    try:
        return None if is_discrete(fn) else biject_to(fn.support)
    except NotImplementedError:
        return None


def _wrong_density(
    leaves: dict[str, Tensor], points: Sites, latents: Sites
) -> tuple[str, str, str] | None:
    """Compare the log_density of one point with the Jacobian of its one auxiliary site."""
    if len(leaves) != 1 or len(points) != 1:
        return None
    ((auxiliary, a),), ((name, site),) = leaves.items(), points.items()
    point, transform = innermost(site["fn"]), _bijection(latents[name]["fn"])
    if transform is None or not a.is_floating_point():
        return None
    u = transform.inv(point.v)
    columns = u.reshape(*site["fn"].batch_shape, -1)  # (batch, D)
    D, batch_dims = columns.shape[-1], columns.dim() - 1
    if D > _MOST_DERIVATIVES or a.shape[:batch_dims] != columns.shape[:-1]:
        return None
    # Rows are independent, so that one backward pass serves an element of all rows.
    rows = [
        torch.autograd.grad(columns[..., i].sum(), a, retain_graph=True)[0].reshape(columns.shape)
        for i in range(D)
    ]
    expected = -torch.stack(rows, -2).slogdet()[1]  # (batch,)
    jacobian = transform.log_abs_det_jacobian(u, point.v)
    density = _per_event(point.log_density, batch_dims) + _per_event(jacobian, batch_dims)
    close = torch.isclose(density, expected, rtol=1e-3, atol=1e-3)
    if (close | ~density.isfinite() | ~expected.isfinite()).all():
        return None
    return (
        name,
        f"The guide's point '{name}' is a function f of the auxiliary site '{auxiliary}', but its "
        "log_density is not -log |det ∂f/∂a|, so that log q is not its density.",
        f"pyro.sample('{name}', dist.Delta(f(a), log_density=-log_abs_det_jacobian)), or "
        "TransformedDistribution in place of both sites.",
    )


def _per_event(value: Tensor, batch_dims: int) -> Tensor:
    return value.sum(list(range(batch_dims, value.dim()))) if value.dim() > batch_dims else value
