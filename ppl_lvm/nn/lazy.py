"""Modules whose sizes come from the first batch."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class LazilySized(nn.Module):
    """A module whose sizes come from arguments, from its first batch, or from a loaded state.

    The constructor of a subclass calls `set_sizes` with its arguments, None where a size is not
    known yet, and its `forward` calls `infer_sizes`. The sizes are attributes, None until then.
    A state that is loaded before the first batch gives the sizes. A copy keeps them.

    A subclass defines `resize` and `state_sizes`, and `batch_sizes` if its batch is not one tensor
    of rows. Without PyTorch's lazy parameters, since Pyro's constrained ones have no lazy form.

    Example:
        >>> class Scale(LazilySized):
        ...     def __init__(self, observed: int | None = None) -> None:
        ...         super().__init__()
        ...         self.set_sizes(observed)
        ...
        ...     def resize(self, observed: int, **like: Any) -> None:
        ...         self.scale = nn.Parameter(torch.ones(observed, **like))
        ...
        ...     def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        ...         return tuple(state["scale"].shape)
        >>> scale = Scale()
        >>> scale.infer_sizes(torch.zeros(5, 3))
        >>> scale.observed
        3
    """

    size_names: ClassVar[tuple[str, ...]] = ("observed",)
    observed: int | None

    def resize(self, *sizes: Any, **like: Any) -> None:
        """Make the parameters and buffers of these sizes.

        Args:
            like: dtype and device of random draws. The base moves the whole module there.
        """
        raise NotImplementedError

    def state_sizes(self, state: dict[str, Tensor]) -> tuple[int, ...]:
        """The sizes of the module that saved `state`.

        Raises:
            KeyError: for a state from before the first batch.
        """
        raise KeyError

    def batch_sizes(self, *batch: Tensor, name: str) -> tuple[int, ...]:
        """The sizes of a valid batch; by default, P of rows (N, P) of floating-point numbers.

        Args:
            name: of the module, for messages.

        Raises:
            ValueError: for another batch.
        """
        (x,) = batch
        check_rows(x, getattr(self, self.size_names[0]), name, self.size_names[0])
        return (x.shape[1],)

    @property
    def is_sized(self) -> bool:
        """True once the sizes are known."""
        return all(getattr(self, name) is not None for name in self.size_names)

    def set_sizes(self, *sizes: int | None, **like: Any) -> None:
        """Set the sizes, and make the parameters if all sizes are known."""
        known = [size for size in sizes if size is not None]
        if len(known) == len(self.size_names):
            self.resize(*known, **like)
        for name, size in zip(self.size_names, sizes, strict=True):
            setattr(self, name, size)

    def infer_sizes(self, *batch: Tensor, owner: nn.Module | None = None) -> None:
        """Check the sizes of a batch. The first batch sets them, and the dtype and device.

        Args:
            owner: the module that takes the batch, if this is a part of it.

        Raises:
            ValueError: for a batch of other sizes.
        """
        owner = self if owner is None else owner
        sizes = self.batch_sizes(*batch, name=type(owner).__name__)
        if not self.is_sized:
            like = tensor_options(batch[-1])
            self.set_sizes(*sizes, **like)
            owner.to(**like)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        if not self.is_sized:
            local = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
            try:
                sizes = self.state_sizes(local)
            except KeyError:  # saved before the first batch: nothing to load
                pass
            else:
                like = tensor_options(next(t for t in local.values() if t.is_floating_point()))
                self.set_sizes(*sizes, **like)
                self.to(**like)
        super()._load_from_state_dict(state, prefix, *rest)


def tensor_options(x: Tensor) -> dict[str, Any]:
    """dtype and device of `x`; the default dtype where `x` holds no floating-point numbers."""
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    return {"dtype": dtype, "device": x.device}


def check_rows(x: Tensor, observed: int | None, name: str, argument: str = "observed") -> None:
    """Reject a tensor that is not rows (N, P) of floating-point numbers.

    Args:
        observed: P, None if it is not known yet.
        name: of the module.
        argument: the module's name for P.

    Raises:
        ValueError: with the shape or dtype, and the remedy.
    """
    check_width(x, observed, name, argument)
    if not x.is_floating_point():
        raise ValueError(
            f"{name} takes rows of floating-point numbers, got {x.dtype}. Pass x.float()."
        )


def check_width(
    x: Tensor, observed: int | None, name: str, argument: str | None = "observed"
) -> None:
    """Reject a tensor that is not rows (N, P), of any dtype; arguments as `check_rows`."""
    if not isinstance(x, Tensor):
        raise ValueError(
            f"{name} takes rows (N, P) as a tensor, got a {type(x).__name__}. Pass a tensor."
        )
    if x.dim() == 2 and x.shape[1] and observed in (None, x.shape[1]):
        return
    if x.dim() == 2 and not x.shape[1]:
        remedy = "Keep at least one column"
    elif x.dim() == 2:
        remedy = "Choose columns"
        if argument is not None:
            remedy += f", or build it with {argument}={x.shape[1]}"
    else:
        remedy = "One column is x.unsqueeze(1)" if x.dim() < 2 else "Flatten it: x.flatten(1)"
    raise ValueError(f"{name} takes rows (N, {observed or 'P'}), got {tuple(x.shape)}. {remedy}.")
