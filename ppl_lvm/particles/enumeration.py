"""Exact sums over the model's enumerated discrete sites.

Each enumerated site c has a separate dimension for its values. With the factors f_j that have such
dimensions, Pyro's tensor message passing computes

    log Σ_c exp Σ_j f_j   →   one log-density per particle and row.

Independence (plates, Markov chains) keeps the cost polynomial. Particles and rows are plates of
this sum.
"""

import math
from collections import OrderedDict
from functools import reduce
from operator import mul
from typing import Any

from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppl_lvm.particles.tracing import (
    SCALES,
    Site,
    Sites,
    inside_scale,
    is_one,
    is_scored,
    plate_ratio,
    temper,
)
from ppl_lvm.programs.minibatch import WEIGHTS


def has_enumerated_dim(site: Site, log_p: Tensor, rank: int) -> bool:
    """True if a log-density, its mask or its scale has a dimension of enumerated values.

    `rank` is the number of dimensions of particles and plates.
    """
    factors = [f for f in (site["mask"], site["scale"]) if isinstance(f, Tensor)]
    return log_p.dim() > rank or any(f.shape[: max(0, f.dim() - rank)].numel() > 1 for f in factors)


def sum_out(
    model: Sites, factors: dict[str, Tensor], nesting: int, data_plate: frozenset[str] | None
) -> list[tuple[frozenset[str], Tensor]]:
    """log Σ over all enumerated sites of the product of `factors`: terms of shape (K, plates).

    The result has the terms of the logarithm, each with the names of its plates. `factors` are the
    log-densities with an enumeration dimension, by site, neither scaled nor masked. Masks and
    scales follow Pyro where it has a rule:

    - A mask leaves out factors of the sum. An enumerated site keeps its density, which then sums
      to one: the masked steps of a padded Markov chain leave no trace.
    - A poutine.scale around the enumerated site tempers the sum: a power of the marginal.
    - Another poutine.scale around a site that depends on it, maybe with a scale that depends on it
      too, tempers that factor inside the sum: log Σ_c p(c) p(x | c)^s(c).

    Raises:
        ValueError: the scales have no such form; the message names two sites.
    """
    trace = Trace()
    for name, site in model.items():
        if is_scored(site):
            trace.nodes[name] = site
    trace.symbolize_dims()
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    sum_dims: set[str] = set()
    scale, packed_terms = packed_factors(model, factors, data_plate)
    for name, term in packed_terms.items():
        site = model[name]
        frames = [f for f in site["cond_indep_stack"] if f.vectorized]
        ordinal = frozenset(trace.plate_to_symbol[f.name] for f in frames)
        tree.setdefault(ordinal, []).append(term)
        if is_enumerated(site):
            sum_dims.add(site["infer"]["_enumerate_symbol"])
    names = {symbol: name for name, symbol in trace.plate_to_symbol.items()}
    first = next(n for n in factors if is_enumerated(model[n]))
    result = []
    for ordinal, contracted in contract_tensor_tree(tree, sum_dims).items():
        for term in contracted:
            value = packed.unpack(term, trace.symbol_to_dim)
            _check_scale_dims(scale, value, nesting, first)
            plates = frozenset(names[symbol] for symbol in ordinal)
            result.append((plates, temper(value, scale, None)))
    return result


def packed_factors(
    model: Sites, factors: dict[str, Tensor], data_plate: frozenset[str] | None
) -> tuple[Any, dict[str, Tensor]]:
    """(scale of the sum, the terms inside it by site: masked, scaled and packed)."""
    scale, inside = _split_scales(model, list(factors), data_plate)
    terms = {}
    for name, factor in factors.items():
        site = model[name]
        value = temper(factor, inside[name], None if is_enumerated(site) else site["mask"])
        if value is factor:
            value = factor[...]  # packing sets an attribute of the tensor, so pack a view
        terms[name] = packed.pack(value, site["infer"]["_dim_to_symbol"])
    return scale, terms


def is_enumerated(site: Site) -> bool:
    """True if the values of a site are enumerated in this run."""
    return site["infer"].get("_enumerate_dim") is not None


def _split_scales(
    model: Sites, names: list[str], data_plate: frozenset[str] | None
) -> tuple[Any, dict[str, Any]]:
    """(scale of the sum, scale of each factor inside it), without the data plate's ratio.

    The scale of the sum is that of the enumerated sites. The contexts of poutine.scale around a
    site, and not the values of scales, say which part is common: equal values may be different
    parameters, and a captured step cannot branch on a tensor.
    """
    first = next(name for name in names if is_enumerated(model[name]))
    outer, context = inside_scale(model[first], data_plate), _contexts(model[first])
    inside: dict[str, Any] = {}
    for name in names:
        site = model[name]
        scale, around = inside_scale(site, data_plate), _contexts(site)
        same = around.keys() == context.keys() or _equal(scale, outer)
        if (WEIGHTS in site["infer"]) != (WEIGHTS in model[first]["infer"]):
            raise ValueError(
                f"weights: site '{first}' outside the rows is summed out, over all rows together. "
                "Sample it in the guide, or leave the weights out."
            )
        nested = not is_enumerated(site) and context.keys() <= around.keys()
        if not (same or nested) or not _equal(plate_ratio(site), plate_ratio(model[first])):
            raise ValueError(
                f"Sites '{first}' and '{name}' are summed over enumerated values together, but the "
                f"scales are {_shown(outer)} and {_shown(scale)}. Use one scale (the same "
                "subsampled plate, or one poutine.scale around both sites), or sample the "
                "enumerated site in the guide."
            )
        extra = [around[key] for key in around if key not in context and not same]
        inside[name] = reduce(mul, extra, 1.0)
    return outer, inside


def _contexts(site: Site) -> dict[Any, Any]:
    """The scales of the poutine.scale contexts around a site, by value or tensor and repetition.

    A scale of another handler counts as a further context.
    """
    scales = list(site["infer"].get(SCALES, ()))
    if isinstance(site["scale"], Tensor):
        if not any(isinstance(scale, Tensor) for scale in scales):
            scales = [site["scale"] / plate_ratio(site)]
    elif not is_one(rest := site["scale"] / plate_ratio(site) / math.prod(scales)):
        scales.append(rest)
    keys = [id(s) if isinstance(s, Tensor) else float(s) for s in scales]
    return {(key, keys[:i].count(key)): scales[i] for i, key in enumerate(keys)}


def _equal(a: Any, b: Any) -> bool:
    """True for equal numbers; tensors are not compared."""
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and math.isclose(a, b)


def _shown(scale: Any) -> str:
    if not isinstance(scale, Tensor):
        return f"{scale:g}"
    return f"a tensor of shape {tuple(scale.shape)}" if scale.dim() else "a tensor"


def _check_scale_dims(scale: Any, value: Tensor, nesting: int, name: str) -> None:
    """Require that the plates of a scale around the sum are left after the sum."""
    if not isinstance(scale, Tensor):
        return
    for dim in range(-min(nesting, scale.dim()), 0):
        if scale.shape[dim] > 1 and (-dim > value.dim() or value.shape[dim] != scale.shape[dim]):
            raise ValueError(
                f"Site '{name}' is summed over enumerated values, but its poutine.scale of shape "
                f"{tuple(scale.shape)} differs along dimension {dim}, over which there is one sum. "
                "Use one scale for each sum, or sample the site in the guide."
            )
