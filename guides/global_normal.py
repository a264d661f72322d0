"""Mean-field guide of global latents.

    q(w) = Dirichlet(c)                    on a simplex
    q(w) = T(N(m, diag s²))                elsewhere, T the bijection onto the support

with parameters c, m and s. Sites are independent of each other (mean field), and of the data given
the parameters.

A Dirichlet can leave a weight near zero where the prior is sparse, and so a mixture empties surplus
components; a normal transformed to the simplex cannot.

Serves the continuous latents outside the plate over rows, in vectorized plates or none.
"""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import Tensor

from ppl_lvm.authoring import Signature, Site, dry_run, signature
from ppl_lvm.core.distributions import unwrap_support
from ppl_lvm.core.validate import Positive
from ppl_lvm.guides.parts.interior_dirichlet import interior_dirichlet
from ppl_lvm.guides.parts.site_guide import Latents, SiteGuide, module_names, serving
from ppl_lvm.guides.parts.support_transform import (
    TransformedNormal,
    enter_plates,
    enumerated,
    require_plain_plates,
)

PRIOR_DRAWS = 15  # for the initial value: enough for a stable median, and cheap to run


@serving(Latents.GLOBAL_CONTINUOUS, description="mean-field factors")
class GlobalNormal(SiteGuide):
    """Mean-field q over the global latents of a model.

    The initial values are those of `model.initial_values(*batch)` (a dictionary, site to tensor),
    if the model has that method, and medians of prior draws otherwise.

    Args:
        model: the model.
        batch: its arguments.
        scale: initial standard deviation of the normals, in the unconstrained space.
        rows: initial concentration of the Dirichlets: the sum of c.

    Raises:
        ValueError: for a model without continuous global latents, or with discrete ones that
            are not enumerated.
    """

    def __init__(
        self, model: Callable[..., Any], *batch: Any, scale: Positive = 0.1, rows: Positive = 100.0
    ) -> None:
        super().__init__()
        self._signature = signature(model, *batch)
        self.sites = supported_sites(self._signature)
        self._transforms: dict[str, TransformedNormal] = {}
        self._names = module_names(site.name for site in self.sites)
        values = _initial_values(model, [site.name for site in self.sites], *batch)
        for site in self.sites:
            value, name = values[site.name], self._names[site.name]
            if _on_simplex(site):
                concentration = PyroParam(rows * value, constraints.positive)
                setattr(self, f"{name}_concentration", concentration)
                continue
            transform = TransformedNormal(site)
            loc = transform.unconstrain(value)
            self._transforms[site.name] = transform
            setattr(self, f"{name}_loc", PyroParam(loc, constraints.real))
            spread = PyroParam(torch.full_like(loc, scale), constraints.softplus_positive)
            setattr(self, f"{name}_scale", spread)

    def draw(self, plates: dict[str, Any], *batch: Any) -> None:
        """Sample every site inside `plates`, which several guides may share."""
        for site in self.sites:
            with enter_plates(site, plates):
                pyro.sample(site.name, self.distribution(site))

    def distribution(self, site: Site) -> Any:
        """q of one of the sites."""
        name = self._names[site.name]
        if site.name not in self._transforms:
            concentration = getattr(self, f"{name}_concentration")
            return interior_dirichlet(concentration).to_event(len(site.event_shape) - 1)
        loc = getattr(self, f"{name}_loc")
        return self._transforms[site.name](loc, getattr(self, f"{name}_scale"))


def supported_sites(model_signature: Signature) -> list[Site]:
    """The global continuous latents.

    Raises:
        ValueError: naming a discrete one that is not enumerated, or if there are none.
    """
    sites = [site for site in model_signature.global_latents if not enumerated(site)]
    for site in sites:
        if site.discrete:
            raise ValueError(
                f"GlobalNormal: it serves continuous sites, but {site.name!r} ~ "
                f'{site.distribution} is discrete. Add infer={{"enumerate": "parallel"}} to '
                "its pyro.sample."
            )
        require_plain_plates(site, model_signature)
    if not sites:
        names = [site.name for site in model_signature.latents]
        plate = model_signature.row_plate
        where = "the plate over rows" if plate is None else f"the plate {plate.name!r}"
        raise ValueError(
            f"GlobalNormal: there is no latent outside {where}; the model's "
            f"latents are {names}. Use ppl_lvm.guides:auto_guide."
        )
    return sites


def _on_simplex(site: Site) -> bool:
    """True if a value is a point on a simplex, or an event of several such points."""
    return isinstance(unwrap_support(site.support), type(constraints.simplex))


def _initial_values(model: Callable[..., Any], names: list[str], *batch: Any) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    if hasattr(model, "initial_values"):
        values = model.initial_values(*batch)
    with dry_run(model, seed=0), torch.no_grad():
        traces = [poutine.trace(model).get_trace(*batch) for _ in range(PRIOR_DRAWS)]
    for name in [name for name in names if name not in values]:
        values[name] = _central([trace.nodes[name]["value"] for trace in traces])
    return {name: values[name].detach().clone() for name in names}


def _central(draws: list[Tensor]) -> Tensor:
    """The draw nearest to the median, so that it lies in the support."""
    stacked = torch.stack(draws)
    distance = (stacked - stacked.median(0).values).reshape(len(stacked), -1).norm(dim=1)
    return stacked[distance.argmin()]
