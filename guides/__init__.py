"""Guides, built from a model's signature.

One guide per file: class or builder, with the latents that it serves (`serves`) and a
`description`. Shared parts are in `parts/`. The folder has more than 12 modules, because each holds
one guide.
"""

from ppl_lvm.core.arguments import check_constructors
from ppl_lvm.guides.amortized import AmortizedNormal
from ppl_lvm.guides.amortized_categorical import AmortizedCategorical
from ppl_lvm.guides.amortized_dirichlet import AmortizedDirichlet
from ppl_lvm.guides.amortized_flow import AmortizedFlow
from ppl_lvm.guides.amortized_joint import AmortizedJoint
from ppl_lvm.guides.amortized_joint_normal import AmortizedJointNormal
from ppl_lvm.guides.amortized_low_rank import AmortizedLowRank
from ppl_lvm.guides.amortized_multivariate import AmortizedMultivariateNormal
from ppl_lvm.guides.auto import AutoGuide, auto_guide
from ppl_lvm.guides.bottom_up import BottomUp
from ppl_lvm.guides.diffusion import ForwardProcess
from ppl_lvm.guides.global_low_rank_normal import GlobalLowRankNormal
from ppl_lvm.guides.global_multivariate_normal import GlobalMultivariateNormal
from ppl_lvm.guides.global_normal import GlobalNormal
from ppl_lvm.guides.label_free import label_free
from ppl_lvm.guides.ladder import Ladder
from ppl_lvm.guides.local_normal import LocalNormal
from ppl_lvm.guides.recurrent import AmortizedRecurrent
from ppl_lvm.guides.semi_amortized import SemiAmortized
from ppl_lvm.guides.vamp_prior_guide import vamp_prior_guide

__all__ = [
    "AmortizedCategorical",
    "AmortizedDirichlet",
    "AmortizedFlow",
    "AmortizedJoint",
    "AmortizedJointNormal",
    "AmortizedLowRank",
    "AmortizedMultivariateNormal",
    "AmortizedNormal",
    "AmortizedRecurrent",
    "AutoGuide",
    "BottomUp",
    "ForwardProcess",
    "GlobalLowRankNormal",
    "GlobalMultivariateNormal",
    "GlobalNormal",
    "Ladder",
    "LocalNormal",
    "SemiAmortized",
    "auto_guide",
    "label_free",
    "vamp_prior_guide",
]

check_constructors(__all__, globals())
