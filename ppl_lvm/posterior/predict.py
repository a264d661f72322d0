"""What a fitted pair says about data: codes, reconstructions, new draws.

All functions run inside the pair's scope, without gradients. Rows come first in every tensor;
D is the size of a latent site, P that of an observed one.
"""

from typing import Any

import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import unwrap
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.programs.minibatch import DATA_PLATE
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.traces import latent_sites, plate_nesting

GLOBAL_DRAWS = 64


def is_local(site: dict[str, Any]) -> bool:
    """Whether a site has one value per row: it stands in the plate "data"."""
    return any(frame.name == DATA_PLATE for frame in site["cond_indep_stack"])


def summed_sites(pair: ModelGuidePair, *batch: Any) -> frozenset[str]:
    """Latent sites of the model that the guide leaves out: enumerated, summed out exactly."""
    with pair.scope(), torch.no_grad(), preserve_rng(), poutine.block():
        drawn = poutine.trace(pair.guide).get_trace(*batch)
        traced = poutine.trace(poutine.replay(pair.model, drawn)).get_trace(*batch)
    return frozenset(latent_sites(traced).keys() - latent_sites(drawn).keys())


def sample(pair: ModelGuidePair, *batch: Any) -> dict[str, Tensor]:
    """Draw from the model as many rows as `batch` has: site -> values, latent and observed.

    Global latents come from the guide (one draw for all rows), local ones from the prior.
    What a model conditions on, such as the inputs of a regression, is read from `batch`.
    """
    with torch.no_grad(), pair.scope(), poutine.block():
        return _values(run_model(pair, draw_guide(pair, batch)[1], batch))


def sample_prior(pair: ModelGuidePair, *batch: Any) -> dict[str, Tensor]:
    """Like `sample`, with the global latents too drawn from the prior."""
    with torch.no_grad(), pair.scope(), poutine.block():
        return _values(run_model(pair, {}, batch))


def draw_guide(
    pair: ModelGuidePair, batch: tuple[Any, ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One draw of the guide: the values of all its latents, and of its global ones."""
    drawn = latent_sites(poutine.trace(pair.guide).get_trace(*batch))
    shared = {name: site["value"] for name, site in drawn.items() if not is_local(site)}
    return {name: site["value"] for name, site in drawn.items()}, shared


def run_model(
    pair: ModelGuidePair, fixed: dict[str, Tensor], batch: tuple[Any, ...]
) -> poutine.Trace:
    """A run of the model with the sites of `fixed` at these values and every other drawn anew,
    the observed ones too."""
    model = poutine.condition(poutine.uncondition(pair.model), data=fixed)
    return poutine.trace(model).get_trace(*batch)


def _values(trace: poutine.Trace) -> dict[str, Tensor]:
    return {
        name: site["value"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def encode(pair: ModelGuidePair, *batch: Any) -> dict[str, Tensor]:
    """Local latent site -> its posterior's summary for each row, by the guide.

    Sites of the guide: the mean of q(z_n | x_n), (N, D); where q has no closed-form mean, or one
    that depends on other sites of the guide, that of 64 draws. Discrete sites, and sites summed
    out of the model: probabilities (N, states), averaged over 64 draws of the global latents
    where there are any.
    """
    with torch.no_grad(), pair.scope(), poutine.block():
        drawn = poutine.trace(pair.guide).get_trace(*batch)
        local = {name: site for name, site in latent_sites(drawn).items() if is_local(site)}
        codes = _means(pair, local, batch)
        summed = summed_sites(pair, *batch)
        if summed:
            repeats = GLOBAL_DRAWS if latent_sites(drawn) else 1
            totals: dict[str, Tensor] = {}
            for _ in range(repeats):
                found = _marginals(pair.model, pair.guide, *batch)
                for name in summed & found.keys():
                    probs = _probabilities(found[name])
                    totals[name] = totals.get(name, 0.0) + probs / repeats
            codes |= totals
    return codes


def _means(
    pair: ModelGuidePair, sites: dict[str, Any], batch: tuple[Any, ...]
) -> dict[str, Tensor]:
    """E[z], or probabilities of its states: in closed form, or averaged over draws of the guide.

    A site whose distribution depends on what the guide has drawn before is averaged, too.
    """
    if not sites:
        return {}
    again = poutine.trace(pair.guide).get_trace(*batch).nodes
    means: dict[str, Tensor] = {}
    for name, site in sites.items():
        first, second = _told(site), _told(again[name])
        if first is not None and second is not None and torch.equal(first, second):
            means[name] = first
    averaged = sites.keys() - means.keys()
    for _ in range(GLOBAL_DRAWS if averaged else 0):
        nodes = poutine.trace(pair.guide).get_trace(*batch).nodes
        for name in averaged:
            told = _told(nodes[name])
            value = nodes[name]["value"] if told is None else told
            means[name] = means.get(name, 0.0) + value / GLOBAL_DRAWS
    return {name: means[name] for name in sites}


def _told(site: dict[str, Any]) -> Tensor | None:
    """What the distribution of a site says of its mean, or of its states; None if nothing."""
    if site["fn"].has_enumerate_support and not site["fn"].event_shape:
        return _probabilities(site["fn"])
    try:
        mean: Tensor = site["fn"].mean
    except NotImplementedError:
        return None
    return mean if torch.isfinite(mean).all() and mean.shape == site["value"].shape else None


def _probabilities(fn: Any) -> Tensor:
    """Probabilities (..., states) of a distribution with a finite support."""
    states = fn.enumerate_support(expand=True)  # (states, ...)
    return fn.log_prob(states).exp().movedim(0, -1)


def decode(pair: ModelGuidePair, codes: dict[str, Tensor], *batch: Any) -> dict[str, Tensor]:
    """Observed site -> mean of p(x_n | z_n) at the given codes, (N, P); categories: probabilities.

    Global latents are put at the guide's means (one draw where it has none in closed form).
    """
    with torch.no_grad(), pair.scope(), poutine.block():
        trace = run_model(pair, {**center_of_globals(pair, batch), **codes}, batch)
    known = {n for n, s in trace.nodes.items() if s["type"] == "sample"}
    if unknown := codes.keys() - known:
        raise ValueError(f"The model has no site {', '.join(map(repr, sorted(unknown)))}.")
    observed = observed_names(pair, batch)
    return {name: expectation(trace.nodes[name]["fn"]) for name in observed}


def center_of_globals(pair: ModelGuidePair, batch: tuple[Any, ...]) -> dict[str, Tensor]:
    """Global latent -> the guide's mean, or one draw of a discrete one."""
    drawn = poutine.trace(pair.guide).get_trace(*batch)
    shared = {name: site for name, site in latent_sites(drawn).items() if not is_local(site)}
    discrete = {name for name, site in shared.items() if site["fn"].has_enumerate_support}
    means = _means(pair, {n: site for n, site in shared.items() if n not in discrete}, batch)
    return {n: site["value"] if n in discrete else means[n] for n, site in shared.items()}


def sample_summed(
    pair: ModelGuidePair, shared: dict[str, Tensor], *batch: Any
) -> dict[str, Tensor]:
    """Draw the summed-out sites from p(z | x, θ) at global latents θ = `shared`."""
    model, guide = (poutine.condition(p, data=shared) for p in (pair.model, pair.guide))
    names = list(shared)
    found = _marginals(poutine.block(model, hide=names), poutine.block(guide, hide=names), *batch)
    return {name: fn.sample() for name, fn in found.items()}


def _marginals(model: Any, guide: Any, *batch: Any) -> dict[str, Any]:
    """Enumerated site -> p(z | x).

    A site of one value only is certain, and kept from Pyro's contraction, which has no dimension
    for it and fails.
    """
    trace = poutine.trace(model).get_trace(*batch)
    certain = {
        name: site
        for name, site in latent_sites(trace).items()
        if site["infer"].get("enumerate") and len(site["fn"].enumerate_support(expand=False)) == 1
    }
    rest = poutine.condition(model, data={name: site["value"] for name, site in certain.items()})
    found = TraceEnum_ELBO(max_plate_nesting=plate_nesting(trace)).compute_marginals(
        rest, guide, *batch
    )
    return {**found, **{name: site["fn"] for name, site in certain.items()}}


def observed_names(pair: ModelGuidePair, batch: tuple[Any, ...]) -> list[str]:
    """Names of the sites that the model observes (factors aside)."""
    with torch.no_grad(), preserve_rng(), pair.scope(), poutine.block():
        return list(observed_values(poutine.trace(pair.model).get_trace(*batch)))


def observed_values(trace: poutine.Trace) -> dict[str, Tensor]:
    """Observed site of a run of the model -> what it observes (factors aside)."""
    names = [n for n in trace.observation_nodes if not site_is_factor(trace.nodes[n])]
    return {name: trace.nodes[name]["value"] for name in names}


def expectation(fn: Any) -> Tensor:
    """The mean of a distribution; of categories their probabilities (..., C)."""
    inner = unwrap(fn)
    if type(inner).__name__ in ("Categorical", "OneHotCategorical"):
        return inner.probs
    return fn.mean


def components(pair: ModelGuidePair, name: str, count: int, *batch: Any) -> list[dict[str, Any]]:
    """p(x | z = k) for each state k of the summed-out local site `name`, at row 0 of `batch`.

    Observed site -> its distribution, global latents at the guide's means.
    """
    found = []
    with torch.no_grad(), pair.scope(), poutine.block():
        fixed, observed = center_of_globals(pair, batch), observed_names(pair, batch)
        for state in range(count):
            rows = torch.full((len(batch[0]),), state, device=batch[0].device)
            trace = run_model(pair, {**fixed, name: rows}, batch)
            found.append({site: trace.nodes[site]["fn"] for site in observed})
    return found
