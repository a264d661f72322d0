"""A mini-batch of B rows that stands for N: the scale N/B of the plate "data".

Programs write `pyro.plate("data", len(x))` and know nothing of N. This handler tells the plate
how many rows it stands for, in the same words as Pyro's own `subsample_size` does, so that
whoever reads a site sees one convention:

    frame.full_size / frame.size = N / B   for the frame of the plate "data",
    site["scale"] is multiplied by the same ratio.

Only sites inside the plate are scaled, which is what makes bounds right when global latents
stand outside it.
"""

from typing import Any

from pyro.poutine.messenger import Messenger

DATA_PLATE = "data"


class ScaleDataPlate(Messenger):
    """Scale the sites of the plate "data" as if its B rows were `size` = N rows.

    Works around a model and around a guide, as a context or as a wrapper:
    `ScaleDataPlate(N)(model)`.
    A plate that already has a `subsample_size` keeps its own scale (Pyro's N/B).
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
