"""Divergences between a density family and a target.

    fitted = fit_divergence(ReverseKL(), Normal(0.0, 1.0), Gaussian(1))

The target p is data or a known density. The family q is any module with `density()`, a
distribution with reparameterized samples: `ppl_lvm.models.gaussian:Gaussian`,
`ppl_lvm.models.normalizing_flow:NormalizingFlow`, or a user's.
"""

from ppl_lvm.core.arguments import check_constructors
from ppl_lvm.divergences.base import DensityFamily, Divergence, Target, as_target
from ppl_lvm.divergences.chi_square import ChiSquare
from ppl_lvm.divergences.energy_distance import EnergyDistance
from ppl_lvm.divergences.fitting import Fitted, Grid, fit_divergence
from ppl_lvm.divergences.jensen_shannon import JensenShannon
from ppl_lvm.divergences.kl import ForwardKL, ReverseKL
from ppl_lvm.divergences.mass_coverage import CoverageResult, CoverageResults, fit_all
from ppl_lvm.divergences.mmd import MMD
from ppl_lvm.divergences.naming import DIVERGENCES, divergence_by_name
from ppl_lvm.divergences.renyi import RenyiDivergence

__all__ = [
    "DIVERGENCES",
    "MMD",
    "ChiSquare",
    "CoverageResult",
    "CoverageResults",
    "DensityFamily",
    "Divergence",
    "EnergyDistance",
    "Fitted",
    "ForwardKL",
    "Grid",
    "JensenShannon",
    "RenyiDivergence",
    "ReverseKL",
    "Target",
    "as_target",
    "divergence_by_name",
    "fit_all",
    "fit_divergence",
]

check_constructors(__all__, globals())
