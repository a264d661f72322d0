"""Load data as rows of tensors.

More than 12 modules: one for each kind of source.
"""

from ppl_lvm.data.blocks.order import in_order
from ppl_lvm.data.load import Data, load_data

__all__ = ["Data", "in_order", "load_data"]
