"""Memory of the largest tensor in a computation."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """`with LargestTensor() as largest: …` counts the elements of the largest result.

    Attributes:
        elements: of the largest storage that any operation returned.
    """

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                elements = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.elements = max(self.elements, elements)
        return out
