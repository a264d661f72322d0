"""Scale N/B of the plate over rows in mini-batches.

Programs write `pyro.plate("data", len(x))` without N. This handler sets the number of rows that the
plate stands for, with the convention of Pyro's `subsample_size`:

    frame.full_size / frame.size = N / B   for the frame of the plate over rows,
    site["scale"] is multiplied by the same ratio.

Only sites inside the plate are scaled, so that bounds with global latents outside of it are right.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from pyro.poutine.messenger import Messenger, _bound_partial
from torch import Tensor

DATA_PLATE = "data"  # name of the plate over rows in the bundled programs


def num_rows(batch: tuple[Any, ...]) -> int | None:
    """B, the rows of the first tensor; None without a tensor."""
    for part in batch:
        if isinstance(part, Tensor) and part.dim() > 0:
            return len(part)
    return None


def frame_size(site: Mapping[str, Any], frame: Any) -> int:
    """Members of a plate at a site; of a plate without a size, those of the site's values."""
    if frame.size != -1:
        return int(frame.size)
    fn, value = site["fn"], site["value"]
    shapes = [
        (getattr(fn, "batch_shape", ()), frame.dim),
        (getattr(value, "shape", ()), frame.dim - getattr(fn, "event_dim", 0)),
    ]
    return max((shape[dim] for shape, dim in shapes if len(shape) >= -dim), default=1)


WEIGHTS = "_row_weights"  # entry of a site's infer


class ScaleDataPlate(Messenger):
    """Scale the sites of the row plates as if their B rows were `size` = N rows.

    Applies to models and guides, as a context or as a wrapper: `ScaleDataPlate(N)(model)`.
    A plate that subsamples the rows of the batch keeps Pyro's scale.

    Args:
        size: N.
        plates: names of the plates over rows, see `row_plates`.
    """

    def __init__(self, size: int, plates: Collection[str] = (DATA_PLATE,)) -> None:
        super().__init__()
        self.size, self.plates = size, frozenset(plates)
        self._rows: int | None = None

    def __call__(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """`program` under this handler."""

        # Pyro's own kind of wrapper, which poutine.unwrap removes.
        return _bound_partial(partial(_run_scaled, self, program))

    def _pyro_sample(self, msg: Any) -> None:
        frames = msg["cond_indep_stack"]
        for i, frame in enumerate(frames):
            if frame.name not in self.plates:
                continue
            size = frame.size if frame.size != -1 else self._rows or frame_size(msg, frame)
            full = size if frame.full_size in (None, -1) else frame.full_size
            subsampled = full != size and size != self._rows
            if subsampled or full == self.size:
                continue
            scaled = frame._replace(full_size=self.size, size=size)
            msg["cond_indep_stack"] = (*frames[:i], scaled, *frames[i + 1 :])
            msg["scale"] = msg["scale"] * (self.size / full)


def _run_scaled(
    handler: ScaleDataPlate, program: Callable[..., Any], *batch: Any, **kwargs: Any
) -> Any:
    handler._rows = num_rows(batch)  # of a plate without a size
    with handler:
        return program(*batch, **kwargs)


class WeightRows(Messenger):
    """Mark the sites of the plates over rows with the weights (B,) of these, or scale them.

    Estimators multiply the bound of row b by w_b, outside of any log-mean-exp; a joint log-weight
    has w_b inside. Programs and Pyro's objectives do not see the mark: for these the log-density
    of a row is multiplied (`scales`).
    """

    def __init__(self, weights: Tensor, plates: Collection[str], scales: bool = False) -> None:
        super().__init__()
        self.weights, self.plates, self.scales = weights, plates, scales

    def _pyro_sample(self, msg: Any) -> None:
        frame = next((f for f in msg["cond_indep_stack"] if f.name in self.plates), None)
        if frame is None:
            return
        if frame.dim is None or frame.size not in (-1, len(self.weights)):
            raise ValueError(
                f"weights: {len(self.weights)} rows have weights, but the plate {frame.name!r} "
                f"around {msg['name']!r} is {'sequential' if frame.dim is None else frame.size}. "
                f"Write pyro.plate({frame.name!r}, len(x), dim=-1) and leave subsampling to fit."
            )
        shaped = self.weights.reshape(-1, *[1] * (-frame.dim - 1))
        if self.scales:
            msg["scale"] = msg["scale"] * shaped
        else:
            msg["infer"] = {**msg["infer"], WEIGHTS: shaped}


class WeightedProgram:
    """A program of (*batch, weights): it runs on the batch, with the weights of its rows."""

    def __init__(
        self, program: Callable[..., Any], plates: Collection[str], scales: bool = False
    ) -> None:
        self.program, self.plates, self.scales = program, plates, scales

    def __call__(self, *args: Any) -> Any:
        *batch, weights = args
        with WeightRows(weights, self.plates, self.scales):
            return self.program(*batch)
