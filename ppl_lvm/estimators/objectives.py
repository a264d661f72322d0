"""Build objectives from names; reject unsupported pairs.

Some of Pyro's objectives are silently wrong on some pairs: with validation off,
`TraceMeanField_ELBO` drops the score term of a discrete guide, and `RenyiELBO` always drops it
(the guide's gradient is then exactly zero for alpha = 0). These cases raise here, because a wrong
gradient of a correct loss is worse than an error.
"""

from collections.abc import Collection
from typing import Any

import pyro.infer
from pyro import poutine
from pyro.infer import ELBO, RenyiELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ppl_lvm import estimators
from ppl_lvm.core.call_syntax import build, parse_call
from ppl_lvm.core.messages import unknown
from ppl_lvm.core.torch_specs import describe, elbo_settings
from ppl_lvm.particles.bound_estimate import estimated_site, refuse_other_draws, rejection_message
from ppl_lvm.programs.row_plates import is_row_site
from ppl_lvm.programs.traces import latent_sites, plate_nesting

PYRO_OBJECTIVES = (
    "Trace_ELBO",
    "TraceMeanField_ELBO",
    "TraceEnum_ELBO",
    "TraceGraph_ELBO",
    "RenyiELBO",
)


def objective(spec: str | ELBO) -> ELBO:
    """Build an objective from call syntax, "IWAE(num_particles=5)"; return an object unchanged."""
    if isinstance(spec, ELBO):
        return spec
    name, arguments = parse_call(spec, "objective")
    if name in estimators.__all__:
        factory = getattr(estimators, name)
    elif name in PYRO_OBJECTIVES:
        factory = getattr(pyro.infer, name)
    else:
        available = sorted([*estimators.__all__, *PYRO_OBJECTIVES])
        raise ValueError(unknown("objective", name, available))
    return build(factory, settings=arguments, what=name)


def record_text(objective: ELBO) -> str:
    """The text of an objective for run.json, from which `rebuild` makes an equal one.

    One that cannot be rebuilt has its module before its name, which `rebuild` refuses.
    """
    text = describe(objective)
    return text if is_rebuilt(objective) else f"{type(objective).__module__}.{text}"


def rebuild(text: str) -> ELBO:
    """The objective of a run, also one of Pyro's that `objective` does not offer by name.

    Raises:
        ValueError: the text does not determine the objective.
    """
    name = text.partition("(")[0]
    factory = getattr(pyro.infer, name, None)
    if name in estimators.__all__ or not isinstance(factory, type) or not issubclass(factory, ELBO):
        if "." in name:
            raise ValueError(
                f"objective: {text} cannot be built from its settings. Pass it: "
                "load_run(directory, objective=...)."
            )
        return objective(text)
    built: ELBO = build(factory, settings=parse_call(text)[1], what=name)
    return built


def is_rebuilt(objective: ELBO) -> bool:
    """True if the text of an objective determines it: class, settings and modules."""
    try:
        other = rebuild(describe(objective))
    except (ValueError, TypeError):
        return False
    if type(other) is not type(objective) or _settings(other) != _settings(objective):
        return False
    if not isinstance(objective, nn.Module) or not isinstance(other, nn.Module):
        return True
    # The sizes of a lazy module are those of its first batch.
    shapes = [
        {n: None if is_lazy(p) else p.shape for n, p in e.named_parameters()}
        for e in (objective, other)
    ]
    known = [n for n in shapes[0] if shapes[0][n] is not None and shapes[1].get(n) is not None]
    return (
        _classes(objective) == _classes(other)
        and shapes[0].keys() == shapes[1].keys()
        and all(shapes[0][n] == shapes[1][n] for n in known)
    )


def _settings(objective: ELBO) -> dict[str, Any]:
    """Public attributes and constructor arguments that are no tensors."""
    values = {**vars(objective), **elbo_settings(objective)}
    return {
        name: value
        for name, value in values.items()
        if not (name.startswith("_") or name == "training" or isinstance(value, Tensor | nn.Module))
    }


def _classes(module: nn.Module) -> list[type]:
    """Classes of the modules; a lazy module changes its class at its first use."""
    return [getattr(type(m), "cls_to_become", None) or type(m) for m in module.modules()]


def default_objective(
    model_trace: poutine.Trace, guide_trace: poutine.Trace, *, refined: bool = False
) -> str:
    """The default objective of a pair: unbiased, with the least variance for its cost.

    - The leave-one-out score function for a guide that is not reparameterized. It also sums out
      the discrete sites that the guide omits, with less variance than TraceEnum_ELBO.
    - TraceEnum_ELBO for other discrete sites that the guide omits, or that it enumerates. ELBO
      where a poutine.scale is inside their sum, which TraceEnum_ELBO rejects.
    - Otherwise the pathwise ELBO. If the guide is `refined` per row, it is close to the posterior,
      where the gradients of prior and likelihood cancel unless a closed form replaces the prior's.
    """
    latents = latent_sites(guide_trace)
    enumerated = [n for n, s in latents.items() if s["infer"].get("enumerate")]
    reparameterized = all(site["fn"].has_rsample for site in latents.values())
    summed_out = latent_sites(model_trace).keys() - latents.keys()
    scaled = any(_scales_inside_sum(model_trace, name) for name in summed_out)
    if enumerated or (reparameterized and summed_out and not scaled):
        return f"TraceEnum_ELBO(max_plate_nesting={plate_nesting(model_trace)})"
    if reparameterized:
        return "ELBO(analytic_kl=False)" if refined else "ELBO"
    return "LeaveOneOut(num_particles=4)"


def _scales_inside_sum(model_trace: poutine.Trace, name: str) -> bool:
    """True if a site in the plates of the summed-out site `name` has another poutine.scale."""
    first = model_trace.nodes[name]
    plates = {frame.name for frame in first["cond_indep_stack"]}
    return any(
        isinstance(site["scale"], Tensor) or site["scale"] != first["scale"]
        for site in model_trace.nodes.values()
        if site["type"] == "sample" and plates <= {f.name for f in site["cond_indep_stack"]}
        if plates or not site["cond_indep_stack"]
    )


def scales_inside(objective: ELBO) -> bool:
    """True if a site's scale enters inside the logarithm of the mean (Pyro's RenyiELBO).

    N/B of a mini-batch must then multiply the result of the objective instead.
    """
    return isinstance(objective, RenyiELBO)


def refuse_wrong_gradients(
    objective: ELBO, guide_trace: poutine.Trace, row_plates: Collection[str], *, subsampled: bool
) -> None:
    """Reject a pair for which one of Pyro's objectives would be silently wrong.

    Raises:
        ValueError: with the site, and an objective to use instead.
    """
    name = type(objective).__name__
    if isinstance(objective, RenyiELBO | TraceMeanField_ELBO):
        for site, node in latent_sites(guide_trace).items():
            if not node["fn"].has_rsample:
                raise ValueError(
                    f"{name} has no score-function term, so site {site!r} of the guide, which is "
                    "not reparameterized, would get a wrong gradient. Use "
                    + (
                        "VIMCO(num_particles=5)."
                        if isinstance(objective, RenyiELBO)
                        else "TraceGraph_ELBO or LeaveOneOut(num_particles=4)."
                    )
                )
    if isinstance(objective, RenyiELBO) and subsampled:
        for site, node in latent_sites(guide_trace).items():
            if not is_row_site(node, row_plates):
                raise _global_renyi(site)


def refuse_missing_sites(
    objective: ELBO, model_trace: poutine.Trace, guide_trace: poutine.Trace
) -> None:
    """Reject latents of the model that the guide lacks, for objectives of Pyro that need them.

    Raises:
        ValueError: with the site, and an objective to use instead.
    """
    name = type(objective).__name__
    if name not in ("TraceMeanField_ELBO", "TraceGraph_ELBO"):
        return
    for site in latent_sites(model_trace).keys() - latent_sites(guide_trace).keys():
        raise ValueError(
            f"{name}: it needs every latent of the model in the guide, and {site!r} is in the "
            "model alone. Use ELBO or TraceEnum_ELBO, which sum it out, or sample it in the guide."
        )


def refuse_estimates(
    objective: ELBO, model_trace: poutine.Trace, guide_trace: poutine.Trace
) -> None:
    """Reject unsupported pairs whose model scores an estimate of a bound.

    RenyiELBO needs log-weights, and the guide must draw from the model's distributions. Estimators
    of this package perform the first check themselves.

    Raises:
        ValueError: with the site, and the remedy.
    """
    nodes = {n: s for n, s in model_trace.nodes.items() if s["type"] == "sample"}
    site = estimated_site(nodes)
    if site is None:
        return
    if isinstance(objective, RenyiELBO):
        raise ValueError(rejection_message(site, "RenyiELBO"))
    latents = latent_sites(guide_trace)
    log_p = {n: nodes[n]["fn"].log_prob(s["value"]) for n, s in latents.items() if n in nodes}
    refuse_other_draws(site, log_p, {n: s["fn"].log_prob(s["value"]) for n, s in latents.items()})


def _global_renyi(site: str) -> ValueError:
    return ValueError(
        f"RenyiELBO with the global latent {site!r} and mini-batches is no bound: N/B is inside "
        "the logarithm. Use the whole data (batch_size=None) or an ELBO."
    )
