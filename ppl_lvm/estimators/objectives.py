"""Words for objectives and optimisers -> the objects and back, and the pairs an objective refuses.

Pyro's own objectives are checked here because some are silently wrong on some pairs: with
validation off `TraceMeanField_ELBO` drops the score term of a discrete guide, and `RenyiELBO`
always does (the guide's gradient is then exactly zero for alpha = 0). A wrong gradient under a
right loss is worse than an error.
"""

import pyro.infer
from pyro import poutine
from pyro.infer import ELBO, RenyiELBO, TraceMeanField_ELBO

from ppl_lvm import estimators
from ppl_lvm.core.call_syntax import build, parse_call
from ppl_lvm.particles.bound_estimate import estimated_site, refuse_other_draws, rejection_message
from ppl_lvm.programs.traces import data_plate_size, latent_sites, plate_nesting

PYRO_OBJECTIVES = (
    "Trace_ELBO",
    "TraceMeanField_ELBO",
    "TraceEnum_ELBO",
    "TraceGraph_ELBO",
    "RenyiELBO",
)


def objective(spec: str | ELBO) -> ELBO:
    """An objective from its name in call syntax, "IWAE(num_particles=5)", or as it is."""
    if isinstance(spec, ELBO):
        return spec
    name, arguments = parse_call(spec)
    ours = list(estimators.__all__)
    if name in ours:
        factory = getattr(estimators, name)
    elif name in PYRO_OBJECTIVES:
        factory = getattr(pyro.infer, name)
    else:
        raise ValueError(f"There is no objective {name!r}; there are {_listed(ours)}.")
    return build(factory, settings=arguments, what=name)


def _listed(ours: list[str]) -> str:
    return ", ".join(sorted([*ours, *PYRO_OBJECTIVES]))


def default_objective(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> str:
    """The objective that suits a pair.

    Discrete sites that the guide leaves out, or enumerates itself, are summed out; a guide that
    is not reparameterised gets the leave-one-out score function; any other the pathwise ELBO.
    """
    drawn = latent_sites(guide_trace)
    enumerated = [n for n, s in drawn.items() if s["infer"].get("enumerate")]
    if latent_sites(model_trace).keys() - drawn.keys() or enumerated:
        return f"TraceEnum_ELBO(max_plate_nesting={plate_nesting(model_trace)})"
    if all(site["fn"].has_rsample for site in drawn.values()):
        return "ELBO"
    return "LeaveOneOut(num_particles=4)"


def scales_inside(objective: ELBO) -> bool:
    """Whether a site's scale enters inside the logarithm of the mean (Pyro's RenyiELBO).

    A mini-batch's N/B must then be kept away from the objective and multiply its result.
    """
    return isinstance(objective, RenyiELBO)


def refuse_wrong_gradients(
    objective: ELBO, guide_trace: poutine.Trace, *, subsampled: bool
) -> None:
    """Raise where one of Pyro's objectives would be silently wrong on this pair.

    Raises:
        ValueError: names the site, and the objective to use instead.
    """
    name = type(objective).__name__
    if isinstance(objective, RenyiELBO | TraceMeanField_ELBO):
        for site, node in latent_sites(guide_trace).items():
            if not node["fn"].has_rsample:
                raise ValueError(
                    f"{name} has no score-function term, so site {site!r} of the guide, which is "
                    "not reparameterised, would get a wrong gradient. Use "
                    + (
                        "VIMCO(num_particles=5)."
                        if isinstance(objective, RenyiELBO)
                        else "TraceGraph_ELBO or LeaveOneOut(num_particles=4)."
                    )
                )
    if isinstance(objective, RenyiELBO) and subsampled:
        if data_plate_size(guide_trace) is None and latent_sites(guide_trace):
            raise _global_renyi(next(iter(latent_sites(guide_trace))))
        for site, node in latent_sites(guide_trace).items():
            if all(frame.name != "data" for frame in node["cond_indep_stack"]):
                raise _global_renyi(site)


def refuse_estimates(
    objective: ELBO, model_trace: poutine.Trace, guide_trace: poutine.Trace
) -> None:
    """Raise where a model that scores estimates of its bound meets what needs log-weights, or a
    guide that draws in another way than the model. Ours refuse by themselves.

    Raises:
        ValueError: names the site, and the remedy.
    """
    nodes = {n: s for n, s in model_trace.nodes.items() if s["type"] == "sample"}
    site = estimated_site(nodes)
    if site is None:
        return
    if isinstance(objective, RenyiELBO):
        raise ValueError(rejection_message(site, "RenyiELBO"))
    drawn = latent_sites(guide_trace)
    log_p = {n: nodes[n]["fn"].log_prob(s["value"]) for n, s in drawn.items() if n in nodes}
    refuse_other_draws(site, log_p, {n: s["fn"].log_prob(s["value"]) for n, s in drawn.items()})


def _global_renyi(site: str) -> ValueError:
    return ValueError(
        f"RenyiELBO with the global latent {site!r} and mini-batches is no bound: it puts N/B "
        "inside the logarithm. Use the whole data (batch_size=None) or an ELBO."
    )
