"""Packages that build their `SVI` take captured steps."""

import sys
from typing import Self

from pyro.infer import SVI

from ppl_lvm.compiler.svi import CompiledSVI

OURS = __name__.partition(".")[0]


class accelerate:  # noqa: N801  (called like a function, as torch.no_grad is)
    """Put `CompiledSVI` in place of `pyro.infer.SVI`, for packages that build one.

    From the call on, or in a `with` block, every module that names the class `pyro.infer.SVI`
    names `CompiledSVI`. Objects that exist, and subclasses of SVI, stay as they are. The end of the
    block, or `restore()`, takes it back.

    Example:
        >>> with accelerate():
        ...     from pyro.infer import SVI as Accelerated
        >>> Accelerated.__name__
        'CompiledSVI'
    """

    def __init__(self) -> None:
        # A distinct class, so that modules that name CompiledSVI are told from those.
        self._accelerated = type("CompiledSVI", (CompiledSVI,), {"__doc__": CompiledSVI.__doc__})
        self._replace(SVI, self._accelerated)

    def restore(self) -> None:
        """Put `pyro.infer.SVI` back, in modules imported meanwhile too."""
        self._replace(self._accelerated, SVI)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    @staticmethod
    def _replace(old: type, new: type) -> None:
        for name, module in list(sys.modules.items()):
            if module is None or name.partition(".")[0] == OURS:
                continue
            for attribute, value in list(getattr(module, "__dict__", {}).items()):
                if value is old:
                    setattr(module, attribute, new)
