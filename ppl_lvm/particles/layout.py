"""Values of a site as one flat vector per row."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from ppl_lvm.particles.tracing import plate_dim


def row_axis(site: Mapping[str, Any], plate: Collection[str] | None) -> int | None:
    """The dimension of the rows in a site's value, counted from the right; None without rows.

    `plate` names the plate over rows. Sizes do not tell: other plates and events may be as large.
    """
    dim = plate_dim(site, plate)
    return None if dim is None else dim - int(site["fn"].event_dim)


def by_row(value: Tensor, axis: int | None) -> Tensor:
    """Reshape (K, plates, event) to (K, N, d): one vector per particle and row.

    `axis` is the dimension of the rows. None makes one vector of all values (a global site).
    """
    if axis is None:
        return value.reshape(len(value), 1, -1)
    rows = value.movedim(axis, 1)
    return rows.reshape(*rows.shape[:2], -1)


def as_particles(value: Tensor, axis: int, which: slice) -> Tensor:
    """Use rows `which` of one draw (1, plates, event) as particles of all N rows.

    Particle k has the value of row k at every row m, so that q(z_k | x_m) is scored for all pairs.
    """
    axis, rows = axis % value.dim(), value.shape[axis]
    selected = value.movedim(axis, 0)[which]  # (K, 1, others)
    expanded = selected.unsqueeze(2).expand(-1, -1, rows, *selected.shape[2:])  # (K, 1, N, others)
    return expanded.squeeze(1).movedim(1, axis).contiguous()
