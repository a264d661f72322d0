"""Latent sites that the log-density of each site reads.

A run of the program labels the memory of every draw with the name of its site, and follows the
labels through all tensor operations, also in-place ones and those of lazily computed parameters. A
result has the labels of all its arguments. Values play no part: 0·z depends on z.
"""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_lvm.core.distributions import is_point

Names = frozenset[str]

_TO_PYTHON = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}
_INDEXED = {Tensor.__getitem__, Tensor.__setitem__}


def dependencies(program: Callable[..., Any], *batch: Any) -> dict[str, tuple[str, ...] | None]:
    """Site -> latent sites that its log-density reads directly, without itself.

    None where it is unknown: the log-density cannot be computed, or a draw became a Python number
    before. Sites with a point mass are transparent: they pass on what they depend on. Call it
    inside a `dry_run`.
    """
    result: dict[str, tuple[str, ...] | None] = {}
    with pyro.validation_enabled(False), _Labels() as labels, _LabelDraws(labels) as draws:
        trace = poutine.trace(program).get_trace(*batch)
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or site_is_subsample(node):
                continue
            reads = None if name in draws.unknown_at else _reads(node, labels)
            ordered = (other for other in trace.nodes if reads and other in reads)
            result[name] = None if reads is None else tuple(n for n in ordered if n != name)
    return result


def _reads(node: dict[str, Any], labels: "_Labels") -> Names | None:
    """Labels of the log-density of a site, and of its mask and scale."""
    labels.is_unknown = False
    try:
        log_prob = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
    except Exception:  # a distribution without a density, or with one of other arguments
        return None
    names = labels.of([log_prob, node["mask"], node["scale"]])
    return None if labels.is_unknown else names


class _LabelDraws(Messenger):
    """Label each draw with the name of its site.

    Attributes:
        unknown_at: sites after a draw that became a Python number.
    """

    def __init__(self, labels: "_Labels") -> None:
        super().__init__()
        self._labels = labels
        self.unknown_at: set[str] = set()

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        if self._labels.is_unknown:
            self.unknown_at.add(msg["name"])
        if msg["is_observed"] or is_point(msg["fn"]) or not isinstance(msg["value"], Tensor):
            return
        # A copy, since a draw may share its memory with the tensors that it was made of.
        msg["value"] = msg["value"].clone()
        self._labels.set(msg["value"], frozenset({msg["name"]}))


class _Labels(TorchDispatchMode):
    """Follow labels of tensors through all operations, by the memory that tensors share.

    Attributes:
        is_unknown: a labeled tensor became a Python number, or decided a branch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_unknown = False
        self._names: dict[int, tuple[Any, Names]] = {}  # by storage, which is held to stay unique
        self._conversions = _WatchConversions(self)

    def __enter__(self) -> "_Labels":
        super().__enter__()
        self._conversions.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._conversions.__exit__(*error)
        super().__exit__(*error)

    def of(self, values: Any) -> Names:
        """Labels of all tensors in a nested structure."""
        tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
        return frozenset().union(*(self._of_tensor(tensor) for tensor in tensors))

    def _of_tensor(self, tensor: Tensor) -> Names:
        key = _memory(tensor)
        return frozenset() if key is None else self._names.get(key[0], (None, frozenset()))[1]

    def set(self, tensor: Tensor, names: Names) -> None:
        """Replace the labels of a tensor."""
        key = _memory(tensor)
        if key is not None:
            self._names[key[0]] = key[1], names
        elif names:
            self.is_unknown = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        names = self.of((args, kwargs))
        result = func(*args, **kwargs)
        if not names:
            return result
        for leaf in [*pytree.tree_leaves(result), *_written(func, args, kwargs)]:
            if isinstance(leaf, Tensor):
                self.set(leaf, names | self._of_tensor(leaf))
            elif leaf is not None:
                self.is_unknown = True
        return result


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Arguments that an operation changes in place."""
    schema = func._schema.arguments
    named = {**{a.name: value for a, value in zip(schema, args, strict=False)}, **kwargs}
    places = [a.name for a in schema if a.alias_info is not None and a.alias_info.is_write]
    return pytree.tree_leaves([named.get(name) for name in places])


class _WatchConversions(TorchFunctionMode):
    """Notice a labeled tensor that becomes a Python object without an operation."""

    def __init__(self, labels: _Labels) -> None:
        super().__init__()
        self._labels = labels

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        labels = self._labels
        if func in _TO_PYTHON and labels.of(args):
            labels.is_unknown = True
        if func not in _INDEXED or not (names := labels.of(args[1])):
            return func(*args, **(kwargs or {}))
        # An index () becomes a number, but what is read or written there is known.
        before = labels.is_unknown
        result = func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__:
            result = changed = result.clone()  # no view, whose base would have the labels too
        else:
            changed = args[0]
        labels.is_unknown = before
        labels.set(changed, names | labels.of(changed))
        return result


def _memory(tensor: Tensor) -> tuple[int, Any] | None:
    """Key of the memory of a tensor, and the memory; None for sparse tensors."""
    if tensor.layout is not torch.strided:
        return None
    storage = tensor.untyped_storage()
    return storage._cdata, storage
