"""Sites whose log-probability is an unbiased estimate of a bound, not a part of a log-weight.

Some bounds are sums too long to take whole: a diffusion's over its time steps. A model may then
draw some terms and weigh them up. With f(z) what it scores and z from a fixed distribution r,

    bound = E_r f(z),

which the mean of log-weights keeps if z is drawn in model and guide alike, for then log p - log q
is f. No other function of log-weights does: log E exp f is no bound on log p(x). So a model marks
such a site infer={"estimate": True}, objectives that need log-weights refuse it by name, and a
guide that draws z from anything but r is refused too.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MARK = "estimate"


def estimated_site(sites: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first site that is so marked; None if every one is a density."""
    return next((name for name, site in sites.items() if site["infer"].get(MARK)), None)


def rejection_message(site: str, what: str) -> str:
    """Why `what` cannot be had of a model with the estimate `site`, and the remedy."""
    return (
        f"{what} needs log-weights, but the model's site {site!r} is an estimate of a bound, drawn "
        "anew each time: only its mean says anything of log p(x). Train with ELBO, and put the "
        "model in evaluation mode (model.eval(), guide.eval()) for its log-weights."
    )


def refuse_other_draws(site: str, log_p: Mapping[str, Tensor], log_q: Mapping[str, Tensor]) -> None:
    """Let the guide draw from the model's own distributions only.

    Args:
        site: the estimate.
        log_p, log_q: of the guide's draws by site, under model and guide.

    Raises:
        ValueError: names the draw that does not cancel.
    """
    for name, scored in log_q.items():
        if name not in log_p or not torch.equal(scored, log_p[name]):
            raise ValueError(
                f"The model's site {site!r} estimates a bound from draws of a fixed distribution, "
                f"but the guide draws {name!r} from another than the model. Use the guide that the "
                "model names (pass guide=None)."
            )
