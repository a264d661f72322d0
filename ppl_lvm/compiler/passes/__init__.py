"""Graph passes: a functional graph in, an equivalent graph out.

`PIPELINE` lists them in the order of application. Row tiling and the vectorization of restarts are
no passes: they make one step of several recordings (`row_tiling`, `vectorize_restarts`).
"""

from ppl_lvm.compiler.passes.base import Pass, RewrittenGraph, Stage
from ppl_lvm.compiler.passes.broadcast_sinking import BroadcastSinking
from ppl_lvm.compiler.passes.horizontal_fusion import HorizontalFusion
from ppl_lvm.compiler.passes.pipeline import PIPELINE, PassError, run_passes, skip, strict_passes

__all__ = [
    "PIPELINE",
    "BroadcastSinking",
    "HorizontalFusion",
    "Pass",
    "PassError",
    "RewrittenGraph",
    "Stage",
    "run_passes",
    "skip",
    "strict_passes",
]
