"""Pyro's `GuideMessenger` as a guide of its latents alone.

Such a guide (`AutoNormalMessenger`, `AutoHierarchicalNormalMessenger`, `AutoRegressiveMessenger`)
runs the model with a posterior in place of each prior, and has both traces of that one run. Where
guides are traced and models are replayed, its run must not show the model's observations.
"""

from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine.guide import GuideMessenger

_PLAIN = "_ppl_lvm_plain"


class LatentsOnly(PyroModule):
    """A guide messenger whose run shows its draws and parameters, and no observed site."""

    def __init__(self, messenger: GuideMessenger) -> None:
        super().__init__()
        self.messenger = messenger
        vars(messenger).setdefault("trace", poutine.Trace())  # a copy of a copy lacks it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with poutine.block(hide_fn=_is_observed):
            values = self.messenger(*args, **kwargs)
        self.messenger.trace = poutine.Trace()  # of another run's graph
        return values

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        vars(self.messenger).setdefault("trace", poutine.Trace())


def _is_observed(msg: Any) -> bool:
    return msg["type"] == "sample" and bool(msg["is_observed"])


def as_written(guide: Any) -> Any:
    """The guide that a user has passed, of which `plain_guide` is one."""
    return guide.messenger if isinstance(guide, LatentsOnly) else guide


def plain_guide(guide: Callable[..., Any]) -> Callable[..., Any]:
    """A guide that can be traced: of a guide messenger the one of its latents, always the same."""
    if not isinstance(guide, GuideMessenger):
        return guide
    if _PLAIN not in vars(guide):
        vars(guide)[_PLAIN] = LatentsOnly(guide)
    plain: LatentsOnly = vars(guide)[_PLAIN]
    return plain
