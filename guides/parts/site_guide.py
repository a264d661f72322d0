"""Base of guides that sample a model's sites."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_lvm.authoring import Signature, Site, signature
from ppl_lvm.guides.parts.support_transform import open_plates


class Latents(StrEnum):
    """Kinds of latents, and of models with a fixed set of latents, that a guide serves."""

    LOCAL_CONTINUOUS = "local continuous latents"
    LOCAL_DISCRETE = "local discrete latents"
    LOCAL_SIMPLEX = "local latents on a simplex"
    GLOBAL_CONTINUOUS = "global continuous latents"
    SEQUENCES = "latents of sequences (N, T, P)"
    LABELED_ROWS = "local latents of models of (x, y)"
    LAYERS = "layers of latents, as in HierarchicalVAE"
    ENCODER_PRIOR = "local latents with a prior made of an encoder"
    DIFFUSION = "latents of a Diffusion"


Builder = TypeVar("Builder", bound=Callable[..., Any])


def serving(*kinds: Latents, description: str) -> Callable[[Builder], Builder]:
    """Declare on a guide class or builder which latents it serves, and what it is in few words.

    The attributes `serves` and `description` are read by `auto_guide` and by the tests.
    """

    def declare(guide: Builder) -> Builder:
        guide.serves = frozenset(kinds)  # type: ignore[attr-defined]
        guide.description = description  # type: ignore[attr-defined]
        return guide

    return declare


class SiteGuide(PyroModule):
    """A guide that samples `sites` inside their plates.

    Latents that the model masks (poutine.mask, obs_mask) have the same masks in the guide: without
    them the bound would have the entropy of values that the model does not score, which has no
    limit.

    Attributes:
        sites: the latents that it samples, in order.
        accepts_signature: whether a `Signature` can stand for the model, so that the guide can
            serve a part of the latents.
    """

    accepts_signature: ClassVar[bool] = False
    sites: list[Site]

    def forward(self, *batch: Any) -> None:
        plates = open_plates(self.sites, self._signature, batch)
        model = self._signature.masking_program
        with nullcontext() if model is None else _Masks(latent_masks(model, *batch)):
            self.draw(plates, *batch)

    @abstractmethod
    def draw(self, plates: dict[str, Any], *batch: Any) -> None:
        """Sample every site inside `plates`, which several guides may share."""


class _Masks(Messenger):
    """Masks sites by name."""

    def __init__(self, masks: dict[str, Tensor]) -> None:
        super().__init__()
        self._masks = masks

    def _pyro_sample(self, msg: Any) -> None:
        if (mask := self._masks.get(msg["name"])) is not None:
            msg["mask"] = mask if msg["mask"] is None else msg["mask"] & mask


def latent_masks(model: Callable[..., Any], *batch: Any) -> dict[str, Tensor]:
    """Latent site -> its mask, in one run of the model."""
    with torch.no_grad(), poutine.block():
        nodes = poutine.trace(model).get_trace(*batch).nodes
    return {
        name: site["mask"]
        for name, site in nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and isinstance(site["mask"], Tensor)
    }


def module_names(names: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
    """Site -> name of its parts in a module, where a dot and names in `taken` are invalid.

    Names that are valid stay; the others are different from all of them.
    """
    result: dict[str, str] = {}
    for name in sorted(names, key=lambda name: "." in name or name in taken):
        part = name.replace(".", "_")
        while part in taken or part in result.values():
            part += "_"
        result[name] = part
    return result


def signature_of(model: Callable[..., Any] | Signature, *batch: Any) -> Signature:
    """Signature of a model; a signature stands for itself."""
    return model if isinstance(model, Signature) else signature(model, *batch)
