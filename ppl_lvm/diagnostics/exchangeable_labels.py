"""Alignment of exchangeable labels: components, topics, states.

Where the model is unchanged by a permutation of its components, the number of a component means
nothing: component 0 of a simulated truth need not be component 0 of a q that was fitted to its
data. Before ranks of "means[0]" are asked, the truth's components are matched to q's means.

Exchangeable is a plate of K latents, with the simplexes of K entries, whose cyclic shift leaves the
joint log-density of model and data as it is. Groups that the data name are not.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_lvm.core.distributions import unwrap_support
from ppl_lvm.core.types import Batch, Program
from ppl_lvm.diagnostics.mixture_components import match_components
from ppl_lvm.particles.structure import PairStructure
from ppl_lvm.particles.tracing import ReplayValues, trace_program

RELATIVE = 1e-4  # difference of two log-densities that are equal to rounding

Axes = dict[str, int]  # site -> dimension of its components, from the right


def exchangeable_axes(
    model: Program,
    batch: Batch,
    structure: PairStructure,
    values: Mapping[str, Tensor],
    log_joint: Callable[[Mapping[str, Tensor]], float],
) -> Axes:
    """The dimension of each site over which the components of the model are exchangeable.

    Args:
        values: draws of all latents of one run.
        log_joint: log p(x, z) of such draws.
    """
    sites = trace_program(model, batch, {}, particles=None, nesting=0, replay=ReplayValues(values))
    plates = {
        frame
        for name in structure.latents
        for frame in sites[name]["cond_indep_stack"]
        if name in sites and frame.vectorized and frame.name not in (structure.data_plate or ())
    }
    axes_of_all: Axes = {}
    for frame in sorted(plates, key=lambda f: str(f.name)):
        axes: Axes = {}
        for name in values:
            if name not in sites:
                continue
            fn, value = sites[name]["fn"], values[name]
            if frame in sites[name]["cond_indep_stack"]:
                axes[name] = frame.dim - fn.event_dim
            elif (
                unwrap_support(fn.support) is constraints.simplex and value.shape[-1] == frame.size
            ):
                axes[name] = -1
        shifted = {n: v.roll(1, axes[n]) if n in axes else v for n, v in values.items()}
        before, after = log_joint(values), log_joint(shifted)
        if frame.size > 1 and abs(before - after) <= RELATIVE * (1 + abs(before)):
            axes_of_all |= axes
    return axes_of_all


def align(values: Mapping[str, Tensor], draws: Mapping[str, Tensor], axes: Axes) -> dict[str, Any]:
    """`values` with components in the order that is closest to the means of `draws` (L, …)."""
    shared = [n for n in axes if n in draws and draws[n].is_floating_point()]
    sizes = {values[n].shape[axes[n]] for n in shared}
    if len(sizes) != 1:  # no components, or several kinds of them
        return dict(values)
    (size,), cost = sizes, np.zeros(())
    for name in shared:
        mean, spread = draws[name].double().mean(0), draws[name].double().std(0).mean()
        q, truth = (
            np.asarray(t.double().movedim(axes[name], 0).reshape(size, -1) / (spread + 1e-12))
            for t in (mean.reshape(values[name].shape), values[name])
        )
        cost = cost + ((q[:, None] - truth[None]) ** 2).sum(-1)
    order = torch.as_tensor(match_components(cost))
    return {n: v.index_select(axes[n], order) if n in axes else v for n, v in values.items()}
