"""Posterior prediction: latent codes, reconstructions, new samples.

All functions run inside the pair's scope, without gradients. Rows come first in every tensor;
D is the size of a latent site, P that of an observed one.
"""

from collections.abc import Collection
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from ppl_lvm.core.distributions import family, unwrap
from ppl_lvm.core.messages import reason_of
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Batch
from ppl_lvm.particles.plate_dependence import follow_draws
from ppl_lvm.particles.tracing import plate_dim
from ppl_lvm.posterior.enumerated_sites import EnumeratedSites
from ppl_lvm.programs.improper import require_proper
from ppl_lvm.programs.minibatch import frame_size, num_rows
from ppl_lvm.programs.pair import ModelGuidePair
from ppl_lvm.programs.row_plates import is_row_site
from ppl_lvm.programs.traces import latent_sites

GLOBAL_DRAWS = 64


def summed_sites(pair: ModelGuidePair, *batch: Any, local: bool = False) -> frozenset[str]:
    """Latent sites of the model that the guide lacks: enumerated and summed out exactly.

    `local`: only those with one value per row.
    """
    with pair.scope(), poutine.block():
        sites = EnumeratedSites(pair.model, pair.guide, batch).sites
    return frozenset(
        name for name, site in sites.items() if not local or is_row_site(site, pair.row_plates)
    )


def sample(
    pair: ModelGuidePair, *batch: Any, training_rows: Batch | None = None
) -> dict[str, Tensor]:
    """Draw as many rows as `batch` has from the model: site -> values, latent and observed.

    Global latents come from the guide, those summed out from their posterior given
    `training_rows` (default: `batch`), one draw for all rows. Local ones come from the prior.
    Values that a model conditions on, such as the inputs of a regression, are read from `batch`.
    """
    with torch.no_grad(), pair.scope(), poutine.block():
        fixed = _draw_globals(pair, batch, training_rows)
        trace = run_model(pair, fixed, batch)
        sites = {n: s for n, s in trace.nodes.items() if s["type"] == "sample"}
        drawn = {n: site for n, site in sites.items() if not site_is_subsample(site)}
        require_all_rows(drawn, pair.row_plates, batch, "sample")
        require_proper({n: site for n, site in drawn.items() if n not in fixed})
        return _values(trace, pair.row_plates)


def sample_prior(pair: ModelGuidePair, *batch: Any) -> dict[str, Tensor]:
    """`sample` with the global latents from the prior too, in the shapes of the program."""
    with torch.no_grad(), pair.scope(), poutine.block():
        return _values(run_model(pair, {}, batch), ())


def draw_guide(pair: ModelGuidePair, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One draw of the guide: the values of all its latents, and of its global ones."""
    sites = latent_sites(poutine.trace(pair.guide).get_trace(*batch))
    values = {name: site["value"] for name, site in sites.items()}
    return values, {n: v for n, v in values.items() if not is_row_site(sites[n], pair.row_plates)}


def _draw_globals(
    pair: ModelGuidePair, batch: Batch, training_rows: Batch | None
) -> dict[str, Tensor]:
    """One draw of the global latents, with the summed-out ones."""
    values = _draw_guide_of_any_rows(pair, batch, training_rows)[1]
    return values | draw_summed_globals(
        pair, batch if training_rows is None else training_rows, values
    )


def _draw_guide_of_any_rows(
    pair: ModelGuidePair, batch: Batch, training_rows: Batch | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`draw_guide`; with the training rows where the guide has parameters for each of these."""
    try:
        return draw_guide(pair, batch)
    except (RuntimeError, ValueError, IndexError) as error:
        try:
            return draw_guide(pair, batch if training_rows is None else training_rows)
        except (RuntimeError, ValueError, IndexError):
            raise ValueError(
                f"The guide does not run on these {num_rows(batch)} rows: {reason_of(error)} If it "
                "has parameters for each training row, pass as many rows as it was fitted to."
            ) from error


def draw_summed_globals(
    pair: ModelGuidePair, batch: Batch, global_values: dict[str, Tensor]
) -> dict[str, Tensor]:
    """One posterior draw of the summed-out global latents, given those of the guide."""
    enumerated = EnumeratedSites(pair.model, pair.guide, batch)
    names = [
        name for name, site in enumerated.sites.items() if not is_row_site(site, pair.row_plates)
    ]
    if not names:
        return {}
    states = enumerated.draw(draw_guide(pair, batch)[0] | global_values)
    return {name: states[name] for name in names}


def run_model(pair: ModelGuidePair, fixed: dict[str, Tensor], batch: Batch) -> poutine.Trace:
    """Run the model with the sites in `fixed` at these values; draw all others, also observed."""
    model = poutine.condition(poutine.uncondition(pair.model), data=fixed)
    return poutine.trace(model).get_trace(*batch)


def _values(trace: poutine.Trace, plates: Collection[str]) -> dict[str, Tensor]:
    return {
        name: _rows_first(site["value"].detach(), site, plates)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def _row_position(site: Any, plates: Collection[str]) -> int:
    """Position of the rows among the dimensions of a site's value; 0 outside their plate."""
    dim = plate_dim(site, plates)
    return 0 if dim is None else max(0, len(site["fn"].batch_shape) + dim)


def _rows_first(value: Tensor, site: Any, plates: Collection[str]) -> Tensor:
    """A value, mean or probabilities of a site with the rows as the first dimension."""
    return value.movedim(_row_position(site, plates), 0) if value.dim() else value


def _as_site(value: Tensor, site: Any, plates: Collection[str]) -> Tensor:
    """The inverse of `_rows_first`."""
    return value.movedim(0, _row_position(site, plates)) if value.dim() else value


def encode(pair: ModelGuidePair, *batch: Any) -> dict[str, Tensor]:
    """Posterior summary of each local latent site for each row, by the guide.

    Sites of the guide: the mean of q(z_n | x_n), (N, D); an average over 64 draws where q has no
    closed-form mean, or a mean that depends on other sites of the guide. Discrete sites, and sites
    summed out of the model: marginal probabilities (N, states), averaged over 64 draws of the
    guide where it has latents. Marginals of several sites do not determine their joint
    distribution; `to_arviz` has joint draws.
    """
    with torch.no_grad(), pair.scope(), poutine.block():
        sites = latent_sites(poutine.trace(pair.guide).get_trace(*batch))
        local = {n: site for n, site in sites.items() if is_row_site(site, pair.row_plates)}
        require_all_rows(local, pair.row_plates, batch, "encode")
        codes = _means(pair, local, batch)
        enumerated = EnumeratedSites(pair.model, pair.guide, batch)
        if enumerated.sites:
            repeats = GLOBAL_DRAWS if sites else 1
            for _ in range(repeats):
                marginals = enumerated.marginals(draw_guide(pair, batch)[0])
                for name, probabilities in marginals.items():
                    local[name] = enumerated.sites[name]
                    codes[name] = codes.get(name, 0.0) + probabilities / repeats
        return {
            name: _rows_first(code, local[name], pair.row_plates) for name, code in codes.items()
        }


def require_all_rows(
    sites: dict[str, Any], plates: Collection[str], batch: Batch, what: str
) -> None:
    """Refuse programs whose plate over rows draws some of them.

    Raises:
        ValueError: with the plate and the remedy.
    """
    B = num_rows(batch)
    for site in sites.values():
        for frame in site["cond_indep_stack"]:
            size = frame_size(site, frame)
            if frame.name in plates and frame.dim is not None and size != B == frame.full_size:
                raise ValueError(
                    f"{what}: the plate {frame.name!r} draws {size} of the {B} rows, so that the "
                    f"others have no values. Write pyro.plate({frame.name!r}, len(x)), and let "
                    f"fit(..., batch_size={size}) draw the rows."
                )


def joint_latents(pair: ModelGuidePair, *batch: Any) -> dict[str, tuple[torch.Size, torch.Size]]:
    """Latent that holds all rows together -> its shapes in the guide, and in the model."""
    if not pair.joint_sites:
        return {}
    with torch.no_grad(), preserve_rng(), pair.scope(), poutine.block():
        guide = latent_sites(poutine.trace(pair.guide).get_trace(*batch))
        model = latent_sites(poutine.trace(pair.model).get_trace(*batch))
    return {
        name: (guide[name]["value"].shape, site["value"].shape)
        for name, site in model.items()
        if name in pair.joint_sites and name in guide
    }


def require_posterior(pair: ModelGuidePair, *batch: Any, what: str) -> None:
    """Refuse rows for which the guide has no values of a latent that holds all rows together.

    Raises:
        ValueError: with the latent and the remedy.
    """
    for name, (of_guide, of_model) in joint_latents(pair, *batch).items():
        if of_guide != of_model:
            raise ValueError(
                f"{what}: {name!r} holds all rows together, and the guide has {tuple(of_guide)} "
                f"values for the training rows alone, where these rows need {tuple(of_model)}. "
                "Fit the model to these rows, or use a guide that computes the values from rows."
            )


def _means(pair: ModelGuidePair, sites: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
    """E[z], or probabilities of its states: in closed form, or averaged over draws of the guide.

    A site whose distribution depends on earlier draws of the guide is averaged too.
    """
    if not sites:
        return {}
    means: dict[str, Tensor] = {}
    with follow_draws() as dependence:
        nodes = poutine.trace(pair.guide).get_trace(*batch).nodes
        for name in [] if dependence.is_unknown else sites:
            mean = _closed_form_mean(nodes[name])
            if mean is not None and dependence.labels(mean) is None:
                means[name] = mean
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


def decode(
    pair: ModelGuidePair, codes: dict[str, Tensor], *batch: Any, training_rows: Batch | None = None
) -> dict[str, Tensor]:
    """Observed site -> mean of p(x_n | z_n) at the codes, (N, P); categories: probabilities.

    Discrete codes are states. Summed-out sites without a code are summed out given the codes.
    Global latents are fixed at the guide's means (one draw where there is no closed form, and of
    discrete ones; of summed-out ones given `training_rows`, default `batch`).
    """
    with torch.no_grad(), pair.scope(), poutine.block():
        with preserve_rng():
            plain = poutine.trace(pair.model).get_trace(*batch)
        _check_codes(codes, plain, pair.row_plates)
        sites, plates = plain.nodes, pair.row_plates
        codes = {name: _as_site(code, sites[name], plates) for name, code in codes.items()}
        values = {**center_of_globals(pair, batch, training_rows), **codes}
        observed = observed_values(plain)
        enumerated = EnumeratedSites(pair.model, pair.guide, batch)
        if not enumerated.sites.keys() <= values.keys():
            means = enumerated.means(values, observed, expectation)
        else:
            nodes = run_model(pair, values, batch).nodes
            means = {name: expectation(nodes[name]["fn"]) for name in observed}
        return {name: _rows_first(mean, sites[name], plates) for name, mean in means.items()}


def _check_codes(codes: dict[str, Tensor], trace: poutine.Trace, plates: Collection[str]) -> None:
    sites = {n: s for n, s in trace.nodes.items() if s["type"] == "sample"}
    if unknown := codes.keys() - sites:
        latents = ", ".join(latent_sites(trace))
        raise ValueError(
            f"Codes: the model has no site {', '.join(map(repr, sorted(unknown)))}. Its latents "
            f"are {latents}."
        )
    for name, code in codes.items():
        fn = sites[name]["fn"]
        if fn.has_enumerate_support and code.dim() > len(fn.shape()):
            raise ValueError(
                f"Code {name!r}: it has shape {tuple(code.shape)}, but the site has one state at "
                f"each of {tuple(fn.shape())}. Pass states, as in codes.argmax(-1)."
            )
        shape = tuple(_rows_first(sites[name]["value"], plates=plates, site=sites[name]).shape)
        if (fn.event_shape and tuple(code.shape) != shape) or not code.isfinite().all():
            raise ValueError(
                f"Code {name!r}: it has shape {tuple(code.shape)}, and the site has finite values "
                f"of shape {shape}. Pass codes as run.encode(x)[{name!r}] has them."
            )


def most_likely_states(
    pair: ModelGuidePair, codes: dict[str, Tensor], *batch: Any
) -> dict[str, Tensor]:
    """Summed-out site -> its states, of all such sites the jointly most likely given the codes.

    Each most likely for itself, they may be impossible together.
    """
    with torch.no_grad(), pair.scope(), poutine.block():
        enumerated = EnumeratedSites(pair.model, pair.guide, batch)
        if not enumerated.sites:
            return {}
        sites = latent_sites(poutine.trace(pair.model).get_trace(*batch))
        others = {
            name: _as_site(code, sites[name], pair.row_plates)
            for name, code in codes.items()
            if name not in enumerated.sites
        }
        states = enumerated.most_likely(_guide_center(pair, batch) | others)
        return {n: _rows_first(s, sites[n], pair.row_plates) for n, s in states.items()}


def center_of_globals(
    pair: ModelGuidePair, batch: Batch, training_rows: Batch | None = None
) -> dict[str, Tensor]:
    """Global latent -> the guide's mean, or one draw of a discrete one.

    Summed-out ones are drawn given `training_rows` (default: `batch`).
    """
    values = _guide_center(pair, batch)
    return values | draw_summed_globals(
        pair, batch if training_rows is None else training_rows, values
    )


def _guide_center(pair: ModelGuidePair, batch: Batch) -> dict[str, Tensor]:
    """Global latent of the guide -> its mean, or one draw of a discrete one."""
    sites = latent_sites(poutine.trace(pair.guide).get_trace(*batch))
    global_sites = {n: site for n, site in sites.items() if not is_row_site(site, pair.row_plates)}
    discrete = {name for name, site in global_sites.items() if site["fn"].has_enumerate_support}
    continuous = {n: site for n, site in global_sites.items() if n not in discrete}
    means = _means(pair, continuous, batch)
    return {n: site["value"] if n in discrete else means[n] for n, site in global_sites.items()}


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
