"""Sum out the model's enumerated discrete sites, exactly, by Pyro's tensor message passing.

Each enumerated site c carries all its values in a dimension of its own. With the factors
f_j that touch such dimensions,

    log Σ_c exp Σ_j f_j   →   one log-density per particle and datum,

where independence (plates, Markov chains) keeps the sum polynomial. Particles and data are plates
to this sum, so the (K, B) table is what it leaves.
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

    `factors` holds the log-densities that have an enumeration dimension, by site. The user's
    poutine.scale on them is one common number and tempers the sum, as in Pyro: a power of a
    marginal. Unequal numbers have no such meaning and are refused.
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
            value = factor[...]  # packing marks the tensor, so mark a view of it
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
    """The one scale of all factors, the data plate's ratio taken out (it acts outside)."""
    scales = {}
    for name in names:
        scale = model[name]["scale"]
        if isinstance(scale, Tensor) and scale.dim():
            raise ValueError(
                f"Site '{name}' is summed over enumerated values, so its poutine.scale must be "
                f"one number; it has shape {tuple(scale.shape)}."
            )
        if data_plate is not None:
            ratio = plate_ratio(model[name], data_plate)
            scale = scale if is_one(ratio) else scale / ratio
        scales[name] = scale
    first = next(iter(scales))
    for name, scale in scales.items():
        if isinstance(scale, Tensor) or isinstance(scales[first], Tensor):
            continue  # equality of tensors is not checked: a captured step could not branch on it
        if abs(scale - scales[first]) > 1e-12:
            raise ValueError(
                f"Sites '{first}' and '{name}' are summed over enumerated values together but are "
                f"scaled by {scales[first]:g} and {scale:g}. Scale both alike (put "
                "both in the same sub-sampled plate, or one poutine.scale around both), or sample "
                "the enumerated site in the guide."
            )
    return scales[first]
