"""Type aliases shared by all layers."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Program = Callable[..., Any]  # a model or guide, called with the batch
Batch = tuple[Any, ...]  # arguments of a program, rows first
Floats = NDArray[np.float64]
Array = NDArray[Any]
State = dict[str, Tensor]  # parameters or statistics by name
Tensors = Mapping[str, Tensor]
Say = Callable[[str, int, int], None]  # progress: name, steps done, steps in all
Draws = Literal["q", "weighted", "resampled"]  # of to_arviz: from q, with weights, or resampled
