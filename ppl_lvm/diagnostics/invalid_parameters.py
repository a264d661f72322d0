"""A program that breaks on rows it was not fitted to: at which site, on what, and what to do.

Simulated rows may lie far outside of the data, above all where columns are of very different
sizes. A network that saw none of that kind then gives a scale that overflows, or NaN.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_lvm.core.distributions import innermost
from ppl_lvm.core.errors import CannotSayError
from ppl_lvm.core.rng import preserve_rng
from ppl_lvm.particles.structure import Program
from ppl_lvm.particles.tracing import ReplayValues, Site, trace_program

REMEDY = "Standardise the columns, x = (x - x.mean(0)) / x.std(0), and fit again."


@contextmanager
def on_simulated(
    model: Program, guide: Program, batch: tuple[Any, ...], fresh: tuple[Any, ...]
) -> Iterator[None]:
    """What fails inside, on rows `fresh` simulated in place of `batch`, is told by its site.

    Raises:
        CannotSayError: a distribution with impossible parameters, and where it stands.
    """
    try:
        yield
    except ValueError as error:
        found = None
        if not isinstance(error, CannotSayError):
            with suppress(RuntimeError):  # a program may break unvalidated, too
                found = impossible(model, guide, fresh)
        if found is None:
            raise
        raise CannotSayError(
            f"On data simulated from the model {found}: simulated values reach "
            f"{_largest(fresh, batch):.2g}, the data's {_largest(batch, fresh):.2g}.",
            REMEDY,
        ) from error


def impossible(model: Program, guide: Program, batch: tuple[Any, ...]) -> str | None:
    """Which site has parameters that its distribution cannot have, in words; None if none has."""
    with torch.no_grad(), preserve_rng(), pyro.validation_enabled(False):
        drawn = trace_program(guide, batch, {}, particles=None, nesting=0)
        for site in drawn.values():
            if fault := _fault(site):
                return f"the guide's site {fault}"
        replay = ReplayValues({name: site["value"] for name, site in drawn.items()})
        for site in trace_program(
            model, batch, {}, particles=None, nesting=0, replay=replay
        ).values():
            if fault := _fault(site):
                return f"the model's site {fault}"
    return None


def _fault(site: Site) -> str | None:
    """'z' has a scale of inf in 3 of 20 numbers; None where all is well."""
    fn = innermost(site["fn"])
    for name, constraint in getattr(fn, "arg_constraints", {}).items():
        value = vars(fn).get(name)  # what it was given, and not what it would derive
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        wrong = ~value.isfinite()
        if wrong.any():
            example = f"{value[wrong][0].item():g}"
        else:
            wrong = ~constraint.check(value)
            example = f"{value[wrong][0].flatten()[0].item():g}" if wrong.any() else ""
        if wrong.any():
            count = f"{int(wrong.sum())} of {wrong.numel()}"
            return f"'{site['name']}' has an impossible {name} of {example} ({count} times)"
    return None


def _largest(batch: tuple[Any, ...], other: tuple[Any, ...]) -> float:
    """The largest size of a number in the tensors of `batch` that differ from those of `other`."""
    pairs = zip(batch, other, strict=True)
    own = [t for t, o in pairs if isinstance(t, Tensor) and not torch.equal(t, o)]
    return max((float(t.double().abs().nan_to_num(0.0).max()) for t in own), default=0.0)
