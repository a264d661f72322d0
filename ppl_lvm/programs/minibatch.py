"""Scale N/B of the plate "data" in mini-batches.

Programs write `pyro.plate("data", len(x))` without N. This handler sets the number of rows that the
plate stands for, with the convention of Pyro's `subsample_size`:

    frame.full_size / frame.size = N / B   for the frame of the plate "data",
    site["scale"] is multiplied by the same ratio.

Only sites inside the plate are scaled, so that bounds with global latents outside of it are right.
"""

from typing import Any

from pyro.poutine.messenger import Messenger

DATA_PLATE = "data"


class ScaleDataPlate(Messenger):
    """Scale the sites of the plate "data" as if its B rows were `size` = N rows.

    Applies to models and guides, as a context or as a wrapper: `ScaleDataPlate(N)(model)`.
    A plate with a `subsample_size` keeps Pyro's scale N/B.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def _pyro_sample(self, msg: Any) -> None:
        frames = msg["cond_indep_stack"]
        for i, frame in enumerate(frames):
            if frame.name != DATA_PLATE or frame.full_size not in (None, frame.size):
                continue
            if frame.size == self.size:
                continue
            scaled = frame._replace(full_size=self.size)
            msg["cond_indep_stack"] = (*frames[:i], scaled, *frames[i + 1 :])
            msg["scale"] = msg["scale"] * (self.size / frame.size)
