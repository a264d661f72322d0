"""Ready encoders and decoders, so that a new pair needs no network boilerplate.

Each is an ordinary `torch.nn.Module` of rows, so `AmortizedNormal(model, x, encoder=…)` takes it:

    MLP               rows of numbers
    RowEncoder        all columns of a batch, standardised, gaps and all
    ConvEncoder       pictures to rows;  ConvDecoder rows to pictures
    SetEncoder        sets of elements, in any order, some of them missing
    PartialEncoder    rows with gaps, as sets of what is known
    MixedColumns      categories beside numbers, for the network that follows
    Standardize       columns in units of their own, for the network that follows
"""

from ppl_lvm.nn.convolutional import ConvDecoder, ConvEncoder
from ppl_lvm.nn.mixed_columns import MixedColumns
from ppl_lvm.nn.mlp import MLP
from ppl_lvm.nn.row_encoder import RowEncoder, Standardize
from ppl_lvm.nn.set_encoder import PartialEncoder, SetEncoder

__all__ = [
    "MLP",
    "ConvDecoder",
    "ConvEncoder",
    "MixedColumns",
    "PartialEncoder",
    "RowEncoder",
    "SetEncoder",
    "Standardize",
]
