"""Bounds and gradient estimators, one per file.

More than twelve modules: every estimator is one file that contains its formula.
"""

from ppl_lvm.core.arguments import check_constructors
from ppl_lvm.estimators.cubo import CUBO
from ppl_lvm.estimators.decaying_average_baseline import DecayingAverageBaseline
from ppl_lvm.estimators.disarm import DisARM
from ppl_lvm.estimators.dreg import DReG
from ppl_lvm.estimators.dreg_renyi import DReGRenyi
from ppl_lvm.estimators.elbo import ELBO
from ppl_lvm.estimators.gumbel_softmax import GumbelSoftmax
from ppl_lvm.estimators.iwae import IWAE
from ppl_lvm.estimators.leave_one_out import LeaveOneOut
from ppl_lvm.estimators.neural_baseline import NeuralBaseline
from ppl_lvm.estimators.rebar import REBAR
from ppl_lvm.estimators.relax import RELAX
from ppl_lvm.estimators.renyi import Renyi
from ppl_lvm.estimators.reweighted_wake_sleep import ReweightedWakeSleep
from ppl_lvm.estimators.score_function import ScoreFunction
from ppl_lvm.estimators.sticking_the_landing import StickingTheLanding
from ppl_lvm.estimators.straight_through import StraightThrough
from ppl_lvm.estimators.thermodynamic import ThermodynamicELBO
from ppl_lvm.estimators.vimco import VIMCO
from ppl_lvm.estimators.vr_max import VRMax

__all__ = [
    "CUBO",
    "ELBO",
    "IWAE",
    "REBAR",
    "RELAX",
    "VIMCO",
    "DReG",
    "DReGRenyi",
    "DecayingAverageBaseline",
    "DisARM",
    "GumbelSoftmax",
    "LeaveOneOut",
    "NeuralBaseline",
    "Renyi",
    "ReweightedWakeSleep",
    "ScoreFunction",
    "StickingTheLanding",
    "StraightThrough",
    "ThermodynamicELBO",
    "VRMax",
]

check_constructors(__all__, globals())
