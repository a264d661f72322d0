"""Values of a site as rows of numbers, whatever its plates and events are."""

from torch import Tensor


def by_row(value: Tensor, rows: int | None, nesting: int) -> Tensor:
    """(K, plates, event) becomes (K, N, d): one row of numbers per particle and datum.

    `rows` is N, which one of the `nesting` plate dimensions must have; None makes one row of all
    (a site outside the data plate).
    """
    if rows is None:
        return value.reshape(len(value), 1, -1)
    return value.movedim(data_axis(value, rows, nesting), 1).reshape(len(value), rows, -1)


def data_axis(value: Tensor, rows: int, nesting: int) -> int:
    """Which dimension of (K, plates, event) is the data's: the rightmost plate of that size."""
    found = [a for a in range(min(nesting, value.dim() - 1), 0, -1) if value.shape[a] == rows]
    assert found, f"no plate dimension of {tuple(value.shape)} has {rows} rows"
    return found[0]


def as_particles(value: Tensor, rows: int, nesting: int, which: slice) -> Tensor:
    """Rows `which` of one draw (1, plates, event) as particles, each shared by all N data.

    Particle k, datum m then has row k's value: what q(z_k | x_m) over all pairs is scored at.
    """
    axis = data_axis(value, rows, nesting)
    picked = value.movedim(axis, 0)[which]  # (K, 1, others)
    spread = picked.unsqueeze(2).expand(-1, -1, rows, *picked.shape[2:])  # (K, 1, N, others)
    return spread.squeeze(1).movedim(1, axis).contiguous()
