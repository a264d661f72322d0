"""Divergences between a family q and a target p (data, or a known density), to be minimised.

    fitted = fit_divergence(ReverseKL(), Normal(0.0, 1.0), Gaussian(1))

A family is anything with `density()`, a distribution that can be drawn from with gradients:
`ppl_lvm.models.gaussian:Gaussian`, `ppl_lvm.models.normalizing_flow:NormalizingFlow`, or yours.
"""

from ppl_lvm.divergences.base import DensityFamily, Divergence, Target, as_target
from ppl_lvm.divergences.chi_square import ChiSquare
from ppl_lvm.divergences.energy_distance import EnergyDistance
from ppl_lvm.divergences.fitting import Fitted, Grid, fit_divergence
from ppl_lvm.divergences.jensen_shannon import JensenShannon
from ppl_lvm.divergences.kl import ForwardKL, ReverseKL
from ppl_lvm.divergences.mass_coverage import CoverageResult, CoverageResults, fit_all
from ppl_lvm.divergences.mmd import MMD
from ppl_lvm.divergences.renyi import RenyiDivergence

DIVERGENCES = (ForwardKL, ReverseKL, RenyiDivergence, ChiSquare, JensenShannon, MMD, EnergyDistance)

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
    "fit_all",
    "fit_divergence",
]
