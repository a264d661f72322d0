"""Encoders and decoders for the usual kinds of data.

Each is an ordinary `torch.nn.Module` of rows, so `AmortizedNormal(model, x, encoder=…)` takes it:

    MLP               rows of numbers
    RowEncoder        all columns of a batch, standardized, missing values included
    ConvEncoder       images to rows;  ConvDecoder rows to images
    SetEncoder        sets of elements, in any order, some of them missing
    PartialEncoder    rows with missing values, as sets of the present ones
    MixedColumns      categorical and numeric columns, for the network that follows
    Standardize       standardized columns, for the network that follows

`ColumnUnits` and `NormalInUnits` are for parameters and latents in the units of columns.
`LazilySized` is the base of modules whose sizes come from the first batch.
"""

from ppl_lvm.core.arguments import check_constructors
from ppl_lvm.nn.convolutional import ConvDecoder, ConvEncoder
from ppl_lvm.nn.lazy import LazilySized
from ppl_lvm.nn.mixed_columns import MixedColumns
from ppl_lvm.nn.mlp import MLP
from ppl_lvm.nn.row_encoder import RowEncoder, Standardize
from ppl_lvm.nn.set_encoder import PartialEncoder, SetEncoder
from ppl_lvm.nn.units import ColumnUnits, NormalInUnits

__all__ = [
    "MLP",
    "ColumnUnits",
    "ConvDecoder",
    "ConvEncoder",
    "LazilySized",
    "MixedColumns",
    "NormalInUnits",
    "PartialEncoder",
    "RowEncoder",
    "SetEncoder",
    "Standardize",
]

check_constructors(__all__, globals())
