"""Posterior prediction: latent codes, reconstructions, new samples.

All functions run inside the pair's scope, without gradients. Rows come first in every tensor;
D is the size of a latent site, P that of an observed one.
"""

from typing import Any

import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import family, unwrap
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Batch
from ppl_lvm.programs.minibatch import DATA_PLATE
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.traces import latent_sites, plate_nesting

GLOBAL_DRAWS = 64


def is_local(site: dict[str, Any]) -> bool:
    """True if a site has one value per row: it is in the plate "data"."""
    return any(frame.name == DATA_PLATE for frame in site["cond_indep_stack"])


def summed_sites(pair: ModelGuidePair, *batch: Any) -> frozenset[str]:
    """Latent sites of the model that the guide lacks: enumerated and summed out exactly."""
    with pair.scope(), torch.no_grad(), preserve_rng(), poutine.block():
        guide = poutine.trace(pair.guide).get_trace(*batch)
        model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(*batch)
    return frozenset(latent_sites(model).keys() - latent_sites(guide).keys())


def sample(pair: ModelGuidePair, *batch: Any) -> dict[str, Tensor]:
    """Draw as many rows as `batch` has from the model: site -> values, latent and observed.

    Global latents come from the guide (one draw for all rows), local ones from the prior. Values
    that a model conditions on, such as the inputs of a regression, are read from `batch`.
    """
    with torch.no_grad(), pair.scope(), poutine.block():
        return _values(run_model(pair, draw_guide(pair, batch)[1], batch))


def sample_prior(pair: ModelGuidePair, *batch: Any) -> dict[str, Tensor]:
    """`sample` with the global latents from the prior too."""
    with torch.no_grad(), pair.scope(), poutine.block():
        return _values(run_model(pair, {}, batch))


def draw_guide(pair: ModelGuidePair, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One draw of the guide: the values of all its latents, and of its global ones."""
    sites = latent_sites(poutine.trace(pair.guide).get_trace(*batch))
    global_values = {name: site["value"] for name, site in sites.items() if not is_local(site)}
    return {name: site["value"] for name, site in sites.items()}, global_values


def run_model(pair: ModelGuidePair, fixed: dict[str, Tensor], batch: Batch) -> poutine.Trace:
    """Run the model with the sites in `fixed` at these values; draw all others, also observed."""
    model = poutine.condition(poutine.uncondition(pair.model), data=fixed)
    return poutine.trace(model).get_trace(*batch)


def _values(trace: poutine.Trace) -> dict[str, Tensor]:
    return {
        name: site["value"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def encode(pair: ModelGuidePair, *batch: Any) -> dict[str, Tensor]:
    """Posterior summary of each local latent site for each row, by the guide.

    Sites of the guide: the mean of q(z_n | x_n), (N, D); an average over 64 draws where q has no
    closed-form mean, or a mean that depends on other sites of the guide. Discrete sites, and sites
    summed out of the model: probabilities (N, states), averaged over 64 draws of the global latents
    where there are any.
    """
    with torch.no_grad(), pair.scope(), poutine.block():
        sites = latent_sites(poutine.trace(pair.guide).get_trace(*batch))
        codes = _means(pair, {n: site for n, site in sites.items() if is_local(site)}, batch)
        summed = summed_sites(pair, *batch)
        if summed:
            repeats = GLOBAL_DRAWS if sites else 1
            totals: dict[str, Tensor] = {}
            for _ in range(repeats):
                marginals = _marginals(pair.model, pair.guide, *batch)
                for name in [n for n in marginals if n in summed]:
                    probs = _probabilities(marginals[name])
                    totals[name] = totals.get(name, 0.0) + probs / repeats
            codes |= totals
    return codes


def _means(pair: ModelGuidePair, sites: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
    """E[z], or probabilities of its states: in closed form, or averaged over draws of the guide.

    A site whose distribution depends on earlier draws of the guide is averaged too.
    """
    if not sites:
        return {}
    second_run = poutine.trace(pair.guide).get_trace(*batch).nodes
    means: dict[str, Tensor] = {}
    for name, site in sites.items():
        first, second = _closed_form_mean(site), _closed_form_mean(second_run[name])
        if first is not None and second is not None and torch.equal(first, second):
            means[name] = first
    averaged = [name for name in sites if name not in means]
    for _ in range(GLOBAL_DRAWS if averaged else 0):
        nodes = poutine.trace(pair.guide).get_trace(*batch).nodes
        for name in averaged:
            mean = _closed_form_mean(nodes[name])
            value = nodes[name]["value"] if mean is None else mean
            means[name] = means.get(name, 0.0) + value / GLOBAL_DRAWS
    return {name: means[name] for name in sites}


def _closed_form_mean(site: dict[str, Any]) -> Tensor | None:
    """Mean of a site's distribution, or probabilities of its states; None if unavailable."""
    if site["fn"].has_enumerate_support and not site["fn"].event_shape:
        return _probabilities(site["fn"])
    try:
        mean: Tensor = site["fn"].mean
    except NotImplementedError:
        return None
    return mean if torch.isfinite(mean).all() and mean.shape == site["value"].shape else None


def _probabilities(fn: Any) -> Tensor:
    """Probabilities (..., states) of a distribution with a finite support."""
    if family(fn) == "Bernoulli":  # whose density is NaN at infinite logits
        p = unwrap(fn).probs.expand(fn.batch_shape)
        return torch.stack([1 - p, p], dim=-1)
    states = fn.enumerate_support(expand=True)  # (states, ...)
    return fn.log_prob(states).exp().movedim(0, -1)


def decode(pair: ModelGuidePair, codes: dict[str, Tensor], *batch: Any) -> dict[str, Tensor]:
    """Observed site -> mean of p(x_n | z_n) at the codes, (N, P); categories: probabilities.

    Global latents are fixed at the guide's means (one draw where there is no closed form).
    """
    with torch.no_grad(), pair.scope(), poutine.block():
        trace = run_model(pair, {**center_of_globals(pair, batch), **codes}, batch)
    sites = {n for n, s in trace.nodes.items() if s["type"] == "sample"}
    if unknown := codes.keys() - sites:
        raise ValueError(f"The model has no site {', '.join(map(repr, sorted(unknown)))}.")
    observed = observed_names(pair, batch)
    return {name: expectation(trace.nodes[name]["fn"]) for name in observed}


def center_of_globals(pair: ModelGuidePair, batch: Batch) -> dict[str, Tensor]:
    """Global latent -> the guide's mean, or one draw of a discrete one."""
    sites = latent_sites(poutine.trace(pair.guide).get_trace(*batch))
    global_sites = {name: site for name, site in sites.items() if not is_local(site)}
    discrete = {name for name, site in global_sites.items() if site["fn"].has_enumerate_support}
    continuous = {n: site for n, site in global_sites.items() if n not in discrete}
    means = _means(pair, continuous, batch)
    return {n: site["value"] if n in discrete else means[n] for n, site in global_sites.items()}


def sample_summed(pair: ModelGuidePair, theta: dict[str, Tensor], *batch: Any) -> dict[str, Tensor]:
    """Draw the summed-out sites from p(z | x, θ) at global latents θ."""
    model, guide = (poutine.condition(p, data=theta) for p in (pair.model, pair.guide))
    names = list(theta)
    marginals = _marginals(
        poutine.block(model, hide=names), poutine.block(guide, hide=names), *batch
    )
    return {name: fn.sample() for name, fn in marginals.items()}


def _marginals(model: Any, guide: Any, *batch: Any) -> dict[str, Any]:
    """Enumerated site -> p(z | x).

    Sites with a single state are excluded from Pyro's contraction, which has no dimension for them
    and fails.
    """
    trace = poutine.trace(model).get_trace(*batch)
    single_state = {
        name: site
        for name, site in latent_sites(trace).items()
        if site["infer"].get("enumerate") and len(site["fn"].enumerate_support(expand=False)) == 1
    }
    values = {name: site["value"] for name, site in single_state.items()}
    marginals = TraceEnum_ELBO(max_plate_nesting=plate_nesting(trace)).compute_marginals(
        poutine.condition(model, data=values), guide, *batch
    )
    return {**marginals, **{name: site["fn"] for name, site in single_state.items()}}


def observed_names(pair: ModelGuidePair, batch: Batch) -> list[str]:
    """Names of the observed sites of the model, factors excluded."""
    with torch.no_grad(), preserve_rng(), pair.scope(), poutine.block():
        return list(observed_values(poutine.trace(pair.model).get_trace(*batch)))


def observed_values(trace: poutine.Trace) -> dict[str, Tensor]:
    """Observed site of a trace of the model -> its value, factors excluded."""
    names = [n for n in trace.observation_nodes if not site_is_factor(trace.nodes[n])]
    return {name: trace.nodes[name]["value"] for name in names}


def expectation(fn: Any) -> Tensor:
    """The mean of a distribution; of categories their probabilities (..., C)."""
    if family(fn) in ("Categorical", "OneHotCategorical"):
        return unwrap(fn).probs
    return fn.mean


def components(pair: ModelGuidePair, name: str, count: int, *batch: Any) -> list[dict[str, Any]]:
    """p(x | z = k) for each state k of the summed-out local site `name`, at row 0 of `batch`.

    Observed site -> its distribution, global latents at the guide's means.
    """
    distributions = []
    with torch.no_grad(), pair.scope(), poutine.block():
        theta, observed = center_of_globals(pair, batch), observed_names(pair, batch)
        for state in range(count):
            rows = torch.full((len(batch[0]),), state, device=batch[0].device)
            trace = run_model(pair, {**theta, name: rows}, batch)
            distributions.append({site: trace.nodes[site]["fn"] for site in observed})
    return distributions
