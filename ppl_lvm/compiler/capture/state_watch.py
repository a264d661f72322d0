"""What a caller may replace between two steps without telling the engine.

A captured step updates the tensors that it was recorded with and holds the numbers it was recorded
with. `pyro.get_param_store().set_state(…)` puts other tensors in the place of the first;
`model.beta = 0.5` another number in the place of one of the second. Both are looked at before each
step, which costs a microsecond or two.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pyro
from torch import Tensor

from ppl_lvm.compiler.capture import state_snapshot as outside

_PLAIN = (bool, int, float, str, type(None))


class StateWatch:
    """What stood where after the last step that ran the program.

    Args:
        parameters: each with its name; those that the store holds are looked up there.
        objects: model, guide and objective, whose own plain attributes are looked at, and those of
            modules in them whose class is not torch's.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], objects: Sequence[object]) -> None:
        store = pyro.get_param_store()._params
        self._stored = [(n, p, p.requires_grad) for n, p in parameters if store.get(n) is p]
        own = [m for m in outside.modules(objects) if not type(m).__module__.startswith("torch.nn")]
        owners: dict[int, Any] = {id(item): item for item in [*objects, *own]}
        self._numbers = [
            (vars(owner), name, value)
            for owner in owners.values()
            if hasattr(owner, "__dict__")
            for name, value in vars(owner).items()
            if type(value) in _PLAIN and not name.startswith("_") and name != "training"
        ]

    def changed(self) -> bool:
        """Whether something else stands there now, or a parameter is frozen or freed."""
        stored = pyro.get_param_store()._params
        for name, p, trained in self._stored:
            if stored.get(name) is not p or p.requires_grad is not trained:
                return True
        # NaN is not itself, but it is the same object.
        now = ((values.get(name), value) for values, name, value in self._numbers)
        return any(found is not value and found != value for found, value in now)
