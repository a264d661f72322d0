"""Detect parameters and attributes replaced between steps.

A captured step updates the tensors that it was recorded with and contains the numbers that it was
recorded with. `pyro.get_param_store().set_state(…)` replaces the tensors; `model.beta = 0.5`
replaces a number. Both are compared before each step, which costs a microsecond or two.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pyro
from torch import Tensor

from ppl_lvm.compiler.capture.state_snapshot import PLAIN_TYPES, modules


class StateWatch:
    """Parameters and plain attributes as of the last eager step.

    Args:
        parameters: with their names; those in the parameter store are looked up there.
        objects: model, guide and objective; their plain attributes are compared, and those of
            modules in them whose class is not torch's.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], objects: Sequence[object]) -> None:
        store = pyro.get_param_store()._params
        self._stored = [(n, p, p.requires_grad) for n, p in parameters if store.get(n) is p]
        custom = [m for m in modules(objects) if not type(m).__module__.startswith("torch.nn")]
        owners: dict[int, Any] = {id(item): item for item in [*objects, *custom]}
        self._attributes = [
            (vars(owner), name, value)
            for owner in owners.values()
            if hasattr(owner, "__dict__")
            for name, value in vars(owner).items()
            if type(value) in PLAIN_TYPES and not name.startswith("_") and name != "training"
        ]

    def changed(self) -> bool:
        """True if a parameter or attribute was replaced, or a parameter frozen or freed."""
        stored = pyro.get_param_store()._params
        for name, p, trained in self._stored:
            if stored.get(name) is not p or p.requires_grad is not trained:
                return True
        # NaN is not equal to itself, but it is the same object.
        pairs = ((values.get(name), value) for values, name, value in self._attributes)
        return any(current is not value and current != value for current, value in pairs)
