"""Ready encoders and decoders, so that a new pair needs no network boilerplate."""

from ppl_lvm.nn.mlp import MLP

__all__ = ["MLP"]
