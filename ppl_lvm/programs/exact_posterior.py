"""TODO."""

from typing import Any

from pyro.nn import PyroModule
from torch import Tensor


class ExactPosterior(PyroModule):
    """The guide q(z | x) = p(z | x) of a model that knows it: calls `model.posterior(*batch)`.

    It has no parameters of its own.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        if not hasattr(model, "posterior"):
            raise ValueError(
                f"{type(model).__name__} has no posterior(*batch) that samples its latents. "
                "Write one, or choose another guide."
            )
        self._model = (model,)  # in a tuple: its parameters are the model's, not this guide's

    def forward(self, *batch: Tensor) -> None:
        self._model[0].posterior(*batch)
