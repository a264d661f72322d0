"""Invalid distribution parameters on simulated rows: site, value, remedy.

Simulated rows may lie far outside of the data, above all where columns have very different scales.
A network that was not fitted to such rows may return a scale that overflows, or NaN.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pyro
import torch
from torch import Tensor

from ppl_lvm.core.distributions import innermost
from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.core.types import Batch, Program
from ppl_lvm.particles.tracing import ReplayValues, Site, trace_program

REMEDY = "Standardize the columns, x = (x - x.mean(0)) / x.std(0), and fit again."


@contextmanager
def locate_invalid_parameters(
    model: Program, guide: Program, batch: Batch, simulated: Batch
) -> Iterator[None]:
    """Name the site in errors on rows `simulated` in place of `batch`.

    Raises:
        CannotSayError: a distribution has invalid parameters.
    """
    try:
        yield
    except ValueError as error:
        fault = None
        if not isinstance(error, CannotSayError):
            with suppress(RuntimeError):  # a program may fail without validation too
                fault = invalid_site(model, guide, simulated)
        if fault is None:
            raise
        raise CannotSayError(
            f"On data simulated from the model {fault}: simulated values reach "
            f"{_largest(simulated, batch):.2g}, the data's {_largest(batch, simulated):.2g}.",
            REMEDY,
        ) from error


def invalid_site(model: Program, guide: Program, batch: Batch) -> str | None:
    """The first site with invalid parameters and their fault, as text; None if all are valid."""
    with torch.no_grad(), preserve_rng(), pyro.validation_enabled(False):
        guide_sites = trace_program(guide, batch, {}, particles=None, nesting=0)
        for site in guide_sites.values():
            if fault := _fault(site):
                return f"the guide's site {fault}"
        values = ReplayValues({name: site["value"] for name, site in guide_sites.items()})
        model_sites = trace_program(model, batch, {}, particles=None, nesting=0, replay=values)
        for site in model_sites.values():
            if fault := _fault(site):
                return f"the model's site {fault}"
    return None


def _fault(site: Site) -> str | None:
    """Text such as "'z' has an invalid scale of inf (3 of 20 values)"; None if it is valid."""
    fn = innermost(site["fn"])
    for name, constraint in getattr(fn, "arg_constraints", {}).items():
        value = vars(fn).get(name)  # constructor arguments only, none derived from them
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        invalid = ~value.isfinite()
        if invalid.any():
            example = f"{value[invalid][0].item():g}"
        else:
            invalid = ~constraint.check(value)
            example = f"{value[invalid][0].flatten()[0].item():g}" if invalid.any() else ""
        if invalid.any():
            count = f"{int(invalid.sum())} of {invalid.numel()}"
            return f"'{site['name']}' has an invalid {name} of {example} ({count} values)"
    return None


def _largest(batch: Batch, other: Batch) -> float:
    """Largest absolute value in the tensors of `batch` that differ from those of `other`."""
    pairs = zip(batch, other, strict=True)
    changed = [t for t, o in pairs if isinstance(t, Tensor) and not torch.equal(t, o)]
    return max((float(t.double().abs().nan_to_num(0.0).max()) for t in changed), default=0.0)
