"""What all data share: q over the global latents, a distribution of its own for each.

    q(w) = Dirichlet(c)                    on a simplex
    q(w) = T(N(m, diag s²))                elsewhere, T the bijection onto the support

with c, m and s parameters. Sites are independent of each other (mean field), and of the data
given the parameters.

A Dirichlet, and not a normal pushed onto the simplex, since only it can leave a weight near zero
where the prior is sparse: that is how a mixture empties surplus components.

Serves the continuous latents outside the plate "data", in vectorised plates or none.
"""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Dirichlet, constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor

from ppl_lvm.core.distributions import unwrap_support
from ppl_lvm.guides.parts.support_transform import (
    TransformedNormal,
    enter_plates,
    enumerated,
    open_plates,
    require_plain_plates,
)
from ppl_lvm.programs.dry_run import dry_run
from ppl_lvm.programs.minibatch import DATA_PLATE
from ppl_lvm.programs.signatures import Signature, Site, signature

# Prior draws behind a starting point: the median is steady, and cheap to run.
_DRAWS = 15


class GlobalNormal(PyroModule):
    """Mean-field q over the global latents of a model.

    Starts at the values that `model.initial_values(*batch)` gives (a dictionary, site to
    tensor), if the model has that method, and at medians of prior draws where it does not.

    Args:
        model: the model.
        batch: what it is called with.
        scale: standard deviation of the normals at the start, in the unconstrained space.
        rows: how sure the Dirichlets are at the start: the sum of c.

    Raises:
        ValueError: for a model without continuous global latents, or with discrete ones that
            nobody enumerates.
    """

    def __init__(
        self, model: Callable[..., Any], *batch: Any, scale: float = 0.1, rows: float = 100.0
    ) -> None:
        super().__init__()
        declared = signature(model, *batch)
        self._signature = declared
        self.sites = supported_sites(declared)
        self._pushed: dict[str, TransformedNormal] = {}
        start = _start(model, [site.name for site in self.sites], *batch)
        for site in self.sites:
            value = start[site.name]
            if _on_simplex(site):
                concentration = PyroParam(rows * value, constraints.positive)
                setattr(self, f"{site.name}_concentration", concentration)
                continue
            pushed = TransformedNormal(site)
            loc = pushed.unconstrain(value)
            self._pushed[site.name] = pushed
            setattr(self, f"{site.name}_loc", PyroParam(loc, constraints.real))
            spread = PyroParam(torch.full_like(loc, scale), constraints.softplus_positive)
            setattr(self, f"{site.name}_scale", spread)

    def forward(self, *batch: Any) -> None:
        self.draw(open_plates(self.sites, self._signature, rows=0), *batch)

    def draw(self, plates: dict[str, Any], *batch: Any) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        for site in self.sites:
            with enter_plates(site, plates):
                pyro.sample(site.name, self.distribution(site))

    def distribution(self, site: Site) -> Any:
        """q of one of the sites."""
        if site.name not in self._pushed:
            concentration = getattr(self, f"{site.name}_concentration")
            return Dirichlet(concentration).to_event(len(site.event_shape) - 1)
        loc = getattr(self, f"{site.name}_loc")
        return self._pushed[site.name](loc, getattr(self, f"{site.name}_scale"))


def supported_sites(declared: Signature) -> list[Site]:
    """The global continuous latents.

    Raises:
        ValueError: naming a discrete one that nobody enumerates, or if there is none.
    """
    sites = [site for site in declared.global_latents if not enumerated(site)]
    for site in sites:
        if site.discrete:
            raise ValueError(
                f"GlobalNormal serves continuous sites, but {site.name!r} ~ {site.distribution} "
                'is discrete. Add infer={"enumerate": "parallel"} to its pyro.sample.'
            )
        require_plain_plates(site, declared)
    if not sites:
        raise ValueError(
            f"GlobalNormal found no latent outside the plate {DATA_PLATE!r}: the model's are "
            f"{[site.name for site in declared.latents]}. Use ppl_lvm.guides:auto_guide."
        )
    return sites


def _on_simplex(site: Site) -> bool:
    """Whether a value is a point on a simplex, or several of them as one event."""
    return isinstance(unwrap_support(site.support), type(constraints.simplex))


def _start(model: Callable[..., Any], names: list[str], *batch: Any) -> dict[str, Tensor]:
    given: dict[str, Tensor] = {}
    if hasattr(model, "initial_values"):
        given = model.initial_values(*batch)
    with dry_run(model, seed=0), torch.no_grad():
        traces = [poutine.trace(model).get_trace(*batch) for _ in range(_DRAWS)]
    for name in set(names) - set(given):
        given[name] = _middle([trace.nodes[name]["value"] for trace in traces])
    return {name: given[name].detach().clone() for name in names}


def _middle(draws: list[Tensor]) -> Tensor:
    """The draw nearest to the median, so that it lies in the support."""
    stacked = torch.stack(draws)
    distance = (stacked - stacked.median(0).values).reshape(len(stacked), -1).norm(dim=1)
    return stacked[distance.argmin()]
