"""Sites that score an unbiased estimate of a bound.

Some bounds are long sums, such as a diffusion's sum over time steps. A model may sample some terms
and weight them. If the site scores f(z) and z comes from a fixed distribution r, then

    bound = E_r f(z).

The mean of log-weights preserves this if model and guide draw z from the same r, because then
log p - log q = f. Other functions of log-weights do not: log E exp f is no bound on log p(x).
A model therefore marks the site infer={"estimate": True}. Objectives that need log-weights reject
the site by name, and a guide that draws z from a distribution other than r is rejected too.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_lvm.core.autograd import leaves

MARK = "estimate"


def estimated_site(sites: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first site marked as an estimate; None if every site scores a density."""
    return next((name for name, site in sites.items() if site["infer"].get(MARK)), None)


def rejection_message(site: str, objective: str) -> str:
    """Error message for an `objective` that cannot use the estimate `site`."""
    return (
        f"{objective} needs log-weights, but the model's site {site!r} is a random estimate of a "
        "bound: only its mean bounds log p(x). Train with ELBO, and use evaluation mode "
        "(model.eval(), guide.eval()) for log-weights."
    )


def refuse_other_draws(site: str, log_p: Mapping[str, Tensor], log_q: Mapping[str, Tensor]) -> None:
    """Require that the guide draws from the model's distributions, now and after training.

    Args:
        site: the site that scores an estimate.
        log_p, log_q: log-densities of the guide's draws under model and guide, by site, with their
            graphs: equal values with other parameters are equal by chance.

    Raises:
        ValueError: with the name of the draw whose densities differ.
    """
    for name, log_density in log_q.items():
        same = name in log_p and torch.equal(log_density, log_p[name])
        if not same or set(map(id, leaves(log_density))) != set(map(id, leaves(log_p[name]))):
            raise ValueError(
                f"The model's site {site!r} estimates a bound from draws of a fixed distribution, "
                f"but the guide draws {name!r} from another distribution than the model. Use the "
                "model's default guide (pass guide=None)."
            )
