"""Imputation of missing values (NaN) given the observed ones.

    p(x_missing | x_observed) = ∫ p(x_missing | z) p(z | x_observed) dz

for observations that are independent given the latents z. Draws of z come from the guide, and are
resampled by importance weights. A model with a closed form has the method

    impute(x, num_samples=None)        rows with conditional means, or draws (num_samples, N, P).
"""

import torch
from torch import Tensor

from ppl_lvm.core.distributions import innermost
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Batch
from ppl_lvm.particles.sampling import analyze_for_particles
from ppl_lvm.particles.tracing import trace_program
from ppl_lvm.posterior import predict
from ppl_lvm.posterior.arviz_export import draw_posterior
from ppl_lvm.posterior.predictive_draws import complete_draws
from ppl_lvm.posterior.simulation import observed_arguments
from ppl_lvm.programs.pair import ModelGuidePair

MEAN_DRAWS = 1000


def impute(
    pair: ModelGuidePair, *batch: Tensor, num_samples: int | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Observed site -> its argument, NaN replaced by means (N, …) or by draws (num_samples, N, …).

    Means have a closed form where the model has one, and are averages over 1,000 draws otherwise.

    Raises:
        ValueError: the model observes dependent values, or values that are no argument.
    """
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"impute: num_samples={num_samples}. Give 1 or more, or None for means.")
    with torch.no_grad(), preserve_rng(), pair.scope():
        torch.manual_seed(seed)
        closed_form = getattr(pair.model, "impute", None)
        if closed_form is not None:
            (name,) = predict.observed_names(pair, batch)
            return {name: closed_form(*batch, num_samples=num_samples)}
        return _by_draws(pair, batch, num_samples)


def _by_draws(pair: ModelGuidePair, batch: Batch, num_samples: int | None) -> dict[str, Tensor]:
    arguments = observed_arguments(pair.model, *batch)
    missing = {name: batch[i].isnan() for name, i in arguments.items()}
    sites = trace_program(pair.model, batch, {}, particles=None, nesting=0)
    for name in (name for name, gaps in missing.items() if gaps.any()):
        if (fn := innermost(sites[name]["fn"])).event_dim:
            raise ValueError(
                f"impute: the values of a row of {name!r} ~ {type(fn).__name__} depend on each "
                "other given the latents. Give the model a method impute(x, num_samples=None), "
                "or independent values, .to_event(1)."
            )
    structure = analyze_for_particles(pair.model, pair.guide, batch, {}, 2)
    draws = draw_posterior(pair, batch, structure, num_samples or MEAN_DRAWS, "resampled").latents
    _, predictive = complete_draws(pair, batch, structure, draws)
    imputed = {}
    for name, i in arguments.items():
        values = predictive[name].reshape(-1, *batch[i].shape).to(batch[i].dtype)
        values = values.mean(0) if num_samples is None else values
        imputed[name] = torch.where(missing[name], values, batch[i])
    return imputed
