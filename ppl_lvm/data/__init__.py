"""Load data as rows of tensors."""

from ppl_lvm.data.load import Data, load_data

__all__ = ["Data", "load_data"]
