"""Dependence of results on draws, element by element.

A run labels elements of some tensors, and follows them through every tensor operation: an element
of a result that a labeled element may change has the same label, or `SEVERAL`. Values play no
part: 0·z depends on z, and so does a comparison with z or an element at the index z.

    with FollowDependence() as dependence:
        dependence.label(z, 1 + torch.arange(B))     # one label for each row, positive
        log_p = fn.log_prob(z)
    dependence.labels(log_p)                         # 0: depends on none; None if all are 0

Pointwise operations combine the labels of their arguments. Other operations are repeated with NaN
in place of labeled elements, once for each binary digit of the labels; results that become NaN
depend on them. Where neither is possible (sorting, LAPACK, random numbers), every element that may
depend is labeled. The program's own tensors are not changed.
"""

import math
from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_lvm.core.tensor_labels import FollowLabels, in_distribution, is_strided

LABELS = 31  # operations are repeated twice for each of their five digits
SEVERAL = -1  # label of an element that depends on elements of different labels

_INDEX = {  # position of the argument that holds indices
    **dict.fromkeys(
        ("index", "embedding", "index_put", "index_put_", "_index_put_impl_", "take"), 1
    ),
    **dict.fromkeys(("index_select", "gather", "scatter", "scatter_", "scatter_add"), 2),
}
_POINTWISE = {"_to_copy", "masked_fill_", "floor_divide", "mvlgamma"}  # without the tag
_ORDERS = {"sort", "topk", "kthvalue", "median", "nanmedian", "mode"}
_EXTREMES = {"max", "min", "amax", "amin", "any", "all"}
_OVERWRITES = {"copy_", "fill_", "zero_"}
_MATRIX = ("linalg_", "_linalg_", "cholesky", "triangular_solve", "lu_")  # over the last two dims
_SOLVES = {  # place of B, and of A, in solutions of A X = B
    "linalg_solve_triangular": (1, 0),
    "_linalg_solve_ex": (1, 0),
    "triangular_solve": (0, 1),
    "cholesky_solve": (0, 1),
}
_SEARCHES = {"bucketize": 0, "searchsorted": 1}  # place of the values that are looked up
_ERRORS = (RuntimeError, IndexError, KeyError, TypeError, ValueError)


def row_labels(num_rows: int, axis: int) -> Tensor:
    """Labels of rows, along the dimension `axis` < 0; random ones of `LABELS` if there are more."""
    if num_rows > LABELS:
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(1, LABELS + 1, (num_rows,), generator=generator)
    else:
        labels = torch.arange(1, num_rows + 1)
    return labels.reshape(-1, *[1] * (-1 - axis))


class FollowDependence(FollowLabels[Tensor]):
    """Follow labeled elements through the operations of a run.

    Attributes:
        after_unknown: sites run after a labeled element became a Python number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.after_unknown: set[str] = set()

    def label(self, tensor: Tensor, labels: Tensor | None = None) -> None:
        """Label a tensor's elements: positive numbers that broadcast to its shape, default 1.

        Tensors without memory (the device "meta") are not followed.
        """
        if tensor.is_meta:
            return
        labels = torch.ones(()) if labels is None else labels
        self._set(tensor, labels.to(tensor.device).expand(tensor.shape))

    def labels(self, tensor: Any) -> Tensor | None:
        """The labels of a tensor's elements, in its shape; None if all are 0."""
        flat = self._flat(tensor)
        if flat is None:
            return None
        labels = _as_view(flat, tensor)
        return labels if bool(labels.any()) else None

    def _flat(self, tensor: Any) -> Tensor | None:
        """Labels of the memory of a tensor, in elements of its size: of complex numbers, two."""
        flat = self._recall(tensor)
        if flat is None:
            return None
        count = tensor.untyped_storage().nbytes() // tensor.element_size()
        if count != len(flat):
            shape = (count, -1) if count < len(flat) else (len(flat), 1)
            flat = _combined(flat.reshape(shape), (-1,)).repeat_interleave(
                max(1, count // len(flat))
            )
            self._store(tensor, flat)
        return flat

    def is_labeled(self, values: Any) -> bool:
        return any(self.labels(leaf) is not None for leaf in pytree.tree_leaves(values))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if all(self.labels(leaf) is None for leaf in _tensors((*args, *kwargs.values()))):
            return func(*args, **kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        labels = [self.labels(leaf) for leaf in leaves]
        changes = func._schema.is_mutable
        operation = None
        if changes:
            copies = [m if m is None else m.clone() for m in labels]
            operation = _Operation(func, leaves, copies, spec)
        results = func(*args, **kwargs)
        inputs = {t.untyped_storage()._cdata for t in leaves if is_strided(t)}
        tensors = [t for t in pytree.tree_leaves(results) if isinstance(t, Tensor)]
        for place, result in enumerate(tensors):
            # A view shares the labels of its base, as it shares its memory.
            if changes or not is_strided(result) or result.untyped_storage()._cdata not in inputs:
                operation = operation or _Operation(func, leaves, labels, spec)
                self._set(result, operation.labels(place, result))
        if operation is not None and not tensors:  # torch._foreach_add_ and the like
            for leaf in [leaf for leaf in leaves if isinstance(leaf, Tensor)]:
                self._set(leaf, operation.total().expand(leaf.shape))
        return results

    def _set(self, tensor: Tensor, labels: Tensor) -> None:
        if not is_strided(tensor):
            self.is_unknown |= bool(labels.any())
            return
        flat = self._flat(tensor)
        if flat is None:
            if not bool(labels.any()):
                return
            size = tensor.untyped_storage().nbytes() // tensor.element_size()
            flat = torch.zeros(size, dtype=torch.int32, device=tensor.device)
            self._store(tensor, flat)
        try:
            _as_view(flat, tensor).copy_(labels)
        except RuntimeError:  # several elements share one place of memory
            flat.fill_(SEVERAL)


class _Operation:
    """Labels of the results of one operation with labeled arguments.

    Made before the operation runs, which may change its arguments.
    """

    def __init__(self, func: Any, leaves: list[Any], labels: list[Any], spec: Any) -> None:
        self.func, self.name = func, func.overloadpacket.__name__
        self.leaves, self.leaf_labels, self.spec = leaves, labels, spec
        self.args, self.kwargs = pytree.tree_unflatten(leaves, spec)
        self.arg_labels, _ = pytree.tree_unflatten(labels, spec)
        self.present = [m for m in labels if m is not None]
        place = _INDEX.get(self.name)
        self.index = [] if place is None else pytree.tree_leaves(self.args[place])
        self.index_labels = [] if place is None else pytree.tree_leaves(self.arg_labels[place])
        self.is_pointwise = torch.Tag.pointwise in func.tags or self.name in _POINTWISE
        self.is_matrix = self.name.startswith(_MATRIX) and "vector" not in self.name
        plain = self.is_pointwise or self.is_matrix or self.name in {*_OVERWRITES, *_ORDERS}
        self.is_random = torch.Tag.nondeterministic_seeded in func.tags
        self.repeated = [] if plain or self.is_random else self._repeat()

    def labels(self, place: int, result: Tensor) -> Tensor:
        """Labels of the result at `place` in the list of results; all where there is no rule."""
        try:
            return self._rule(place, result).expand(result.shape)
        except _ERRORS:
            return self.total().expand(result.shape)

    def total(self) -> Tensor:
        """The label of a result that depends on all labeled elements: ()."""
        return reduce(_combine, [_combined(m, range(m.dim())) for m in self.present])

    def _rule(self, place: int, result: Tensor) -> Tensor:
        none = torch.zeros((), dtype=torch.int32, device=result.device)
        if self.name.endswith("_like") or self.name.startswith("new_"):
            return none  # only the shape is read
        if self.is_random:
            return self._of_random(none)
        if self.name in _OVERWRITES:
            source = self.arg_labels[1] if len(self.arg_labels) > 1 else None
            return none if source is None else source
        if self.name == "where" and self.arg_labels[0] is None:
            a, b = (none if m is None else m for m in self.arg_labels[1:])
            return torch.where(self.args[0], a, b)
        if self.name in _SEARCHES and self.arg_labels[1 - _SEARCHES[self.name]] is None:
            return torch.as_tensor(self.arg_labels[_SEARCHES[self.name]])
        if self.is_pointwise:
            return reduce(_combine, self.present)
        if self.is_matrix:
            return self._of_matrices(result)
        repeated = self.repeated[place] if place < len(self.repeated) else None
        if any(m is not None for m in self.index_labels):
            if not self.repeated:
                raise TypeError(f"no rule for {self.func}")
            return _combine(self._of_index(), none if repeated is None else repeated)
        if self.name in _EXTREMES and not result.dim() and in_distribution():
            return none  # of all rows: it shifts an exponent, or bounds a loop
        return self._along_dim(result) if repeated is None else repeated

    def _of_random(self, none: Tensor) -> Tensor:
        """Random numbers depend on their parameters; those in place not on the value before."""
        read = self.arg_labels[1:] if self.func._schema.is_mutable else self.arg_labels
        total = reduce(_combine, [m for m in pytree.tree_leaves(read) if m is not None], none)
        joint = self.name in ("_sample_dirichlet", "multinomial")
        return _combined(total, (-1,), keepdim=True) if joint else total

    def _of_matrices(self, result: Tensor) -> Tensor:
        """One matrix of the result depends on all elements of the matrix of the argument.

        In X = A⁻¹ B each column depends on the same column of B.
        """
        if self.name in _SOLVES and self.kwargs.get("left", True):
            places = _SOLVES[self.name]
            b, a = (self.arg_labels[place] for place in places)
            if result.dim() == self.args[places[0]].dim() == self.args[places[1]].dim():
                parts = [_combined(a, (-2, -1), keepdim=True)] if a is not None else []
                parts += [_combined(b, (-2,), keepdim=True)] if b is not None else []
                return reduce(_combine, parts)
        rank = max(t.dim() for t in pytree.tree_leaves(self.args) if isinstance(t, Tensor))
        parts = []
        for m in self.present:
            parts.append(_combined(m, range(m.dim() - (2 if m.dim() == rank else 1), m.dim())))
        batch = reduce(_combine, parts)
        return batch.reshape(*batch.shape, *[1] * (result.dim() - batch.dim()))

    def _along_dim(self, result: Tensor) -> Tensor:
        """A reduction or a sort depends on all elements along its dimension."""
        (labels,) = self.present
        schema = self.func._schema.arguments
        defaults = {argument.name: argument.default_value for argument in schema}
        names = dict(zip(defaults, self.args, strict=False))
        dim = {**defaults, **names, **self.kwargs}.get("dim", range(labels.dim()))
        total = _combined(labels, [dim] if isinstance(dim, int) else dim, keepdim=True)
        return total.reshape(result.shape) if result.dim() < total.dim() else total

    def _of_index(self) -> Tensor:
        """Labels of the elements that are read, or may be written, at labeled indices."""
        if self.name in ("gather", "take"):
            labels: Tensor = self.index_labels[0]
            return labels
        if self.name == "embedding":
            return self.index_labels[0].unsqueeze(-1)
        if self.name.startswith("scatter"):
            return _combined(self.index_labels[0], [self.args[1]], keepdim=True)
        if self.name == "index_select":
            index: list[Any] = [None] * (self.args[1] % self.args[0].dim()) + [self.index_labels[0]]
        else:
            index = list(self.index_labels)
        indices = [*index[:-1], self.args[2]] if self.name == "index_select" else self.args[1]
        if any(isinstance(each, Tensor) and each.dtype is torch.bool for each in indices):
            return self._of_mask()
        if self.name != "index":
            raise TypeError(f"no rule for {self.func}")
        return reduce(
            _combine, [self._looked_up(indices, d, m) for d, m in enumerate(index) if m is not None]
        )

    def _of_mask(self) -> Tensor:
        """Labels of the elements that a labeled mask selects, or may change.

        The place of a selected element, or of a written one, depends on the complete mask; in
        distributions it is put back to where it came from.
        """
        written = self.name != "index"
        if not (in_distribution() or (written and self.args[2].numel() == 1)):
            raise TypeError("a mask selects another number of elements")
        labels = torch.zeros(self.args[0].shape, dtype=torch.int32, device=self.args[0].device)
        dim = 0
        for index, m in zip(self.args[1], self.index_labels, strict=True):
            rank = index.dim() if index is not None and index.dtype is torch.bool else 1
            if m is not None:
                if index.dtype is not torch.bool:
                    raise TypeError("masks beside indices")
                rest = labels.dim() - dim - rank
                labels = _combine(labels, m.reshape(*m.shape, *[1] * rest))
            dim += rank
        if written:
            return labels
        return labels[tuple(slice(None) if i is None else i for i in self.args[1])]

    def _looked_up(self, indices: list[Any], dim: int, labels: Tensor) -> Tensor:
        """Labels of the index of dimension `dim`, looked up in a table that contains them."""
        shape = list(self.args[0].shape)
        for d, index in enumerate(indices):
            shape[d] = 1 if index is not None else shape[d]
        values = torch.arange(
            SEVERAL, int(labels.max()) + 1, dtype=torch.int32, device=labels.device
        )
        shape[dim] = len(values)
        table = values.reshape(-1, *[1] * (len(shape) - dim - 1)).expand(shape)
        first = [index if index is None else torch.zeros_like(index) for index in indices]
        first[dim] = (labels - SEVERAL).to(indices[dim].dtype)
        return table[tuple(slice(None) if place is None else place for place in first)]

    def _repeat(self) -> list[Tensor | None]:
        """Labels by repetition with NaN; None for results that cannot be NaN."""
        largest = max(1, *(int(m.max()) for m in self.present))
        try:
            self.numbers = list(map(self._finite, self.leaves, self.leaf_labels))
            digits = [
                [self._with_nan(digit, value) for value in (0, 1)]
                for digit in range(largest.bit_length())
            ]
        except _ERRORS:
            return []
        return [
            None if zeros is None else _from_digits([[d[v][place] for v in (0, 1)] for d in digits])
            for place, zeros in enumerate(digits[0][0])
        ]

    def _finite(self, leaf: Any, labels: Tensor | None) -> Any:
        """An argument without NaN, such as missing values of the data, and of a type for NaN."""
        if not isinstance(leaf, Tensor):
            return leaf
        labeled = labels is not None and not any(leaf is index for index in self.index)
        number = leaf.to(torch.float32) if labeled and not _has_nan(leaf) else leaf
        return number.nan_to_num(0.0, 0.0, 0.0) if number.is_floating_point() else number

    def _with_nan(self, digit: int, value: int) -> list[Tensor | None]:
        """Results that become NaN with the elements whose labels have this binary digit."""
        copies = []
        for number, leaf, m in zip(self.numbers, self.leaves, self.leaf_labels, strict=True):
            copy = number
            if m is not None and not any(leaf is index for index in self.index):
                selected = (m == SEVERAL) | ((m > 0) & ((m >> digit) % 2 == value))
                copy = number.masked_fill(selected, math.nan)
            elif isinstance(copy, Tensor) and self.func._schema.is_mutable:
                copy = number.clone()
            copies.append(copy)
        args, kwargs = pytree.tree_unflatten(copies, self.spec)
        results = pytree.tree_leaves(self.func(*args, **kwargs))
        return [r.isnan() if isinstance(r, Tensor) and _has_nan(r) else None for r in results]


def _has_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _from_digits(digits: list[list[Any]]) -> Tensor:
    """The label whose binary digits make a result NaN; `SEVERAL` where a 0 and a 1 do."""
    label = several = torch.zeros_like(digits[0][0], dtype=torch.int32)
    for place, (zero, one) in enumerate(digits):
        label = label + (one.int() << place)
        several = several + (zero & one)
    return torch.where(several > 0, SEVERAL, label)


def _combine(a: Tensor, b: Tensor) -> Tensor:
    """The label of a result that depends on elements with labels a and b."""
    several = (a != 0) & (b != 0) & (a != b)
    return torch.where(several, SEVERAL, torch.where(a != 0, a, b))


def _combined(labels: Tensor, dims: Any, keepdim: bool = False) -> Tensor:
    """The label of a result that depends on all elements along `dims`."""
    dims = list(dims)
    if not dims:
        return labels
    largest = labels.amax(dims, keepdim=keepdim)
    smallest = torch.where(labels == 0, torch.iinfo(torch.int32).max, labels).amin(
        dims, keepdim=keepdim
    )
    none = smallest == torch.iinfo(torch.int32).max
    return torch.where(none, 0, torch.where(smallest == largest, largest, SEVERAL))


def _as_view(labels: Tensor, tensor: Tensor) -> Tensor:
    return labels.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


def _tensors(arguments: Iterable[Any]) -> Iterator[Any]:
    """Arguments of an operation and elements of those that are lists."""
    for argument in arguments:
        if isinstance(argument, list | tuple):
            yield from argument
        else:
            yield argument
