"""Draws of sites with improper priors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions import ImproperUniform
from torch import Tensor
from torch.distributions import biject_to

from ppl_lvm.core.distributions import innermost
from ppl_lvm.core.errors import CannotSayError

WIDTH = 2.0  # of unconstrained values, as in Stan's starting points


def _sample(prior: Any, sample_shape: Any = ()) -> Tensor:
    transform = biject_to(prior.support)
    shape = (*sample_shape, *prior.batch_shape, *prior.event_shape)
    value: Tensor = transform(WIDTH * (2 * torch.rand(transform.inverse_shape(shape)) - 1))
    return value


@contextmanager
def improper_draws() -> Iterator[None]:
    """A scope in which an `ImproperUniform` has draws: uniform in (−2, 2) of unconstrained values.

    Nothing can be sampled from an improper prior, but a program must run to show its sites. A
    handler would not do, since `poutine.block` hides sites from it.
    """
    before = ImproperUniform.sample
    ImproperUniform.sample = _sample
    try:
        yield
    finally:
        ImproperUniform.sample = before


def require_proper(drawn: Mapping[str, Any]) -> None:
    """Refuse draws of sites from improper priors.

    Raises:
        CannotSayError: names the site.
    """
    name = improper_site(drawn)
    if name is not None:
        raise CannotSayError(
            f"The prior of {name!r} is improper: nothing can be drawn from it.",
            "Give it a proper prior.",
        )


def improper_site(nodes: Mapping[str, Any]) -> str | None:
    """The first latent site with an improper prior, or None."""
    for name, site in nodes.items():
        latent = site["type"] == "sample" and not site["is_observed"]
        if latent and isinstance(innermost(site["fn"]), ImproperUniform):
            return name
    return None
