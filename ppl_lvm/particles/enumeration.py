"""Exact sums over the model's enumerated discrete sites.

Each enumerated site c has a separate dimension for its values. With the factors f_j that have such
dimensions, Pyro's tensor message passing computes

    log Σ_c exp Σ_j f_j   →   one log-density per particle and row.

Independence (plates, Markov chains) keeps the cost polynomial. Particles and rows are plates of
this sum, so the result is a (K, B) table.
"""

from collections import OrderedDict
from typing import Any

from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppl_lvm.particles.tracing import (
    Sites,
    is_one,
    is_scored,
    plate_dim,
    plate_ratio,
    table,
    temper,
)


def sum_out(
    model: Sites, factors: dict[str, Tensor], nesting: int, data_plate: str | None
) -> Tensor:
    """log Σ over all enumerated sites of the product of `factors`, shape (K, B).

    `factors` are the log-densities with an enumeration dimension, by site. A poutine.scale common
    to all of them tempers the sum, as in Pyro: a power of the marginal. Unequal scales raise.
    """
    trace = Trace()
    for name, site in model.items():
        if is_scored(site):
            trace.nodes[name] = site
    trace.symbolize_dims()
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    sum_dims: set[str] = set()
    data_dim = None
    for name, factor in factors.items():
        site = model[name]
        data_dim = data_dim if data_dim is not None else plate_dim(site, data_plate)
        value = temper(factor, 1.0, site["mask"])
        if value is factor:
            value = factor[...]  # packing sets an attribute of the tensor, so pack a view
        term = packed.pack(value, site["infer"]["_dim_to_symbol"])
        plates = [f.name for f in site["cond_indep_stack"] if f.vectorized]
        ordinal = frozenset(trace.plate_to_symbol[p] for p in plates)
        tree.setdefault(ordinal, []).append(term)
        if site["infer"].get("_enumerate_dim") is not None:
            sum_dims.add(site["infer"]["_enumerate_symbol"])
    scale = _common_scale(model, set(factors), data_plate)
    total: Any = 0.0
    for terms in contract_tensor_tree(tree, sum_dims).values():
        for term in terms:
            value = packed.unpack(term, trace.symbol_to_dim)
            total = total + table(value, nesting, data_dim)
    return temper(total, scale, None)


def _common_scale(model: Sites, names: set[str], data_plate: str | None) -> Any:
    """The common scale of all factors without the data plate's ratio, which acts outside."""
    scales = {}
    for name in names:
        scale = model[name]["scale"]
        if isinstance(scale, Tensor) and scale.dim():
            raise ValueError(
                f"Site '{name}' is summed over enumerated values, but its poutine.scale has shape "
                f"{tuple(scale.shape)}. Use a scalar scale."
            )
        if data_plate is not None:
            ratio = plate_ratio(model[name], data_plate)
            scale = scale if is_one(ratio) else scale / ratio
        scales[name] = scale
    first = next(iter(scales))
    for name, scale in scales.items():
        if isinstance(scale, Tensor) or isinstance(scales[first], Tensor):
            continue  # not compared: a captured step cannot branch on tensor values
        if abs(scale - scales[first]) > 1e-12:
            raise ValueError(
                f"Sites '{first}' and '{name}' are summed over enumerated values together, but the "
                f"scales are {scales[first]:g} and {scale:g}. Use one scale (the same subsampled "
                "plate, or one poutine.scale around both sites), or sample the enumerated site in "
                "the guide."
            )
    return scales[first]
