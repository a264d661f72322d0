"""Detect parameters and attributes replaced between steps.

A captured step updates the tensors that it was recorded with and contains the numbers that it was
recorded with. `pyro.get_param_store().set_state(…)` replaces the tensors; `model.beta = 0.5`
replaces a number; `p.requires_grad_(False)` freezes a parameter. All are compared before each step,
which costs a microsecond or two.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_lvm.compiler.capture.state_snapshot import PLAIN_TYPES, modules
from ppl_lvm.core.autograd import leaves


class CollectedParameters(Messenger):
    """Collect unconstrained parameters by identity: two modules may use one name."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, Tensor] = {}
        self.names: dict[str, Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        for tensor in _leaves_of(msg["value"]):
            self.tensors[id(tensor)] = tensor
            self.names[msg["name"]] = tensor


def _leaves_of(value: Tensor) -> list[Tensor]:
    """The leaf that an optimizer changes; none for a constant.

    Pyro marks values with it, except some of parameters local to modules (`module_local_params`).
    """
    if hasattr(value, "unconstrained"):
        return [value.unconstrained()]
    return leaves(value)


class StateWatch:
    """Parameters and plain attributes as of the last eager step.

    Args:
        parameters: with their names; those in the parameter store are looked up there.
        objects: model, guide and objective; their plain attributes are compared, and those of
            modules in them whose class is not torch's.
        known: parameters of earlier steps.

    Attributes:
        frozen: the `id` of each parameter that is not trained.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor]],
        objects: Sequence[object],
        known: Iterable[Tensor] = (),
    ) -> None:
        store = pyro.get_param_store()._params
        self._stored = [(n, p) for n, p in parameters if store.get(n) is p]
        nested = modules(objects)
        in_modules = [p for m in nested for p in m._parameters.values() if p is not None]
        self._leaves = list({id(p): p for p in [*known, *in_modules]}.values())
        self._note_trained()
        custom = [m for m in nested if not type(m).__module__.startswith("torch.nn")]
        owners: dict[int, Any] = {id(item): item for item in [*objects, *custom]}
        self._attributes = [
            (vars(owner), name, value)
            for owner in owners.values()
            if hasattr(owner, "__dict__")
            for name, value in vars(owner).items()
            if type(value) in PLAIN_TYPES and not name.startswith("_") and name != "training"
        ]

    def _note_trained(self) -> None:
        self._trained = [p.requires_grad for p in self._leaves]
        self.frozen = frozenset(id(p) for p in self._leaves if not p.requires_grad)

    def changed(self) -> bool:
        """True if a parameter or attribute was replaced."""
        stored = pyro.get_param_store()._params
        if any(stored.get(name) is not p for name, p in self._stored):
            return True
        # NaN is not equal to itself, but it is the same object.
        pairs = ((values.get(name), value) for values, name, value in self._attributes)
        return any(current is not value and current != value for current, value in pairs)

    def toggled(self) -> bool:
        """True if a parameter was frozen or freed since the last call."""
        if [p.requires_grad for p in self._leaves] == self._trained:
            return False
        self._note_trained()
        return True
