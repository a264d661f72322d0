"""Values of a site as one flat vector per row."""

from torch import Tensor


def by_row(value: Tensor, rows: int | None, nesting: int) -> Tensor:
    """Reshape (K, plates, event) to (K, N, d): one vector per particle and row.

    `rows` is N, the size of one of the `nesting` plate dimensions. None makes one vector of all
    values (a site outside the data plate).
    """
    if rows is None:
        return value.reshape(len(value), 1, -1)
    return value.movedim(data_axis(value, rows, nesting), 1).reshape(len(value), rows, -1)


def data_axis(value: Tensor, rows: int, nesting: int) -> int:
    """The data dimension of (K, plates, event): the rightmost plate of size `rows`."""
    axes = [a for a in range(min(nesting, value.dim() - 1), 0, -1) if value.shape[a] == rows]
    assert axes, f"no plate dimension of {tuple(value.shape)} has {rows} rows"
    return axes[0]


def as_particles(value: Tensor, rows: int, nesting: int, which: slice) -> Tensor:
    """Use rows `which` of one draw (1, plates, event) as particles of all N rows.

    Particle k has the value of row k at every row m, so that q(z_k | x_m) is scored for all pairs.
    """
    axis = data_axis(value, rows, nesting)
    selected = value.movedim(axis, 0)[which]  # (K, 1, others)
    expanded = selected.unsqueeze(2).expand(-1, -1, rows, *selected.shape[2:])  # (K, 1, N, others)
    return expanded.squeeze(1).movedim(1, axis).contiguous()
