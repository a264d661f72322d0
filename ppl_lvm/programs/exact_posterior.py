"""Exact posterior of a model as a guide."""

from typing import Any

from pyro.nn import PyroModule
from torch import Tensor


class ExactPosterior(PyroModule):
    """The guide q(z | x) = p(z | x), which calls `model.posterior(*batch)`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        if not hasattr(model, "posterior"):
            raise ValueError(
                f"{type(model).__name__}: it has no method posterior(*batch). Write one that "
                "samples its latents, or choose another guide."
            )
        self._model = (model,)  # in a tuple: its parameters are no parameters of the guide

    def forward(self, *batch: Tensor) -> None:
        self._model[0].posterior(*batch)
