"""In-place changes of a batch, by torch's version counters."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def versions(batch: Sequence[Any]) -> list[int]:
    """Version counter of each argument; 0 where it has none."""
    return [
        part._version if isinstance(part, Tensor) and not part.is_inference() else 0
        for part in batch
    ]


def changed_arguments(batch: Sequence[Any], before: Sequence[int]) -> list[int]:
    """Places of the arguments that have been changed in place since `versions` was called."""
    pairs = enumerate(zip(versions(batch), before, strict=True))
    return [place for place, (new, old) in pairs if new != old]


def refuse_changes(batch: Sequence[Any], before: Sequence[int], where: str) -> None:
    """Raise where programs have changed the batch in place since `versions` was called.

    Raises:
        ValueError: names the argument and the remedy.
    """
    for place in changed_arguments(batch, before):
        raise ValueError(
            f"{where}: a program changes its argument {place + 1} in place, so that later steps "
            "have other data. Change a copy: x = x - x.mean() in place of x -= x.mean()."
        )


def copies(batch: Sequence[Any]) -> tuple[Any, ...]:
    """The batch with copied tensors, which a faulty program may change."""
    return tuple(part.clone() if isinstance(part, Tensor) else part for part in batch)
