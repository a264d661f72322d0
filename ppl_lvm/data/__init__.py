"""Data for a fit: named sets, files, arrays, datasets and loaders -> rows of tensors."""

from ppl_lvm.data.load import Data, load_data

__all__ = ["Data", "load_data"]
