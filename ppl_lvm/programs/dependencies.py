"""Latent sites that the log-density of each site reads.

A run of the program labels the memory of every draw with the name of its site, and follows the
labels through all tensor operations, also in-place ones and those of lazily computed parameters. A
result has the labels of all its arguments. Values play no part: 0·z depends on z.
"""

from collections.abc import Callable
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_lvm.core.distributions import is_point
from ppl_lvm.core.tensor_labels import FollowLabels, is_strided

Names = frozenset[str]


class FollowNames(FollowLabels[Names]):
    """Follow names of tensors: a result has those of all its arguments."""

    def of(self, values: Any) -> Names:
        """Names of all tensors in a nested structure."""
        tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
        return frozenset().union(*(self._recall(tensor) or () for tensor in tensors))

    def is_labeled(self, values: Any) -> bool:
        return bool(self.of(values))

    def set(self, tensor: Tensor, names: Names) -> None:
        """Replace the names of a tensor."""
        if is_strided(tensor):
            self._store(tensor, names)
        elif names:
            self.is_unknown = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        names = self.of((args, kwargs))
        result = func(*args, **kwargs)
        if names:
            for leaf in [*pytree.tree_leaves(result), *_written(func, args, kwargs)]:
                if isinstance(leaf, Tensor):
                    self.set(leaf, names | self.of(leaf))
        return result


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Arguments that an operation changes in place."""
    schema = func._schema.arguments
    named = {**{a.name: value for a, value in zip(schema, args, strict=False)}, **kwargs}
    places = [a.name for a in schema if a.alias_info is not None and a.alias_info.is_write]
    return pytree.tree_leaves([named.get(name) for name in places])


def dependencies(program: Callable[..., Any], *batch: Any) -> dict[str, tuple[str, ...] | None]:
    """Site -> latent sites that its log-density reads directly, without itself.

    None where it is unknown: the log-density cannot be computed, or a draw became a Python number
    before. Sites with a point mass are transparent: they pass on what they depend on. Call it
    inside a `dry_run`.
    """
    result: dict[str, tuple[str, ...] | None] = {}
    with pyro.validation_enabled(False), FollowNames() as labels, _LabelDraws(labels) as draws:
        trace = poutine.trace(program).get_trace(*batch)
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or site_is_subsample(node):
                continue
            reads = None if name in draws.unknown_at else _reads(node, labels)
            ordered = (other for other in trace.nodes if reads and other in reads)
            result[name] = None if reads is None else tuple(n for n in ordered if n != name)
    return result


def arguments_read(program: Callable[..., Any], *batch: Any) -> Names | None:
    """Numbers of the arguments that the density of any site reads, apart from observed values.

    None where it is unknown. Call it inside a `dry_run`.
    """
    read: Names = frozenset()
    with pyro.validation_enabled(False), FollowNames() as labels:
        for place, part in enumerate(batch):
            if isinstance(part, Tensor):
                labels.set(part, frozenset({str(place)}))
        trace = poutine.trace(program).get_trace(*batch)
        for node in trace.nodes.values():
            if node["type"] != "sample" or site_is_subsample(node):
                continue
            value = node["value"]
            if node["is_observed"] and isinstance(value, Tensor):
                value = value.clone()
                labels.set(value, frozenset())
            names = _reads({**node, "value": value}, labels)
            if names is None or labels.is_unknown:
                return None
            read |= names
    return read


def _reads(node: dict[str, Any], labels: FollowNames) -> Names | None:
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

    def __init__(self, labels: FollowNames) -> None:
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
