"""Log-weights of K particles, per guide site, particle and row.

More than 12 modules, because each holds one question about a pair and none is large.
"""

from ppl_lvm.particles.particles import Particles, SiteDraws
from ppl_lvm.particles.sampling import analyze_for_particles, draw_particles, log_weights
from ppl_lvm.particles.structure import PairStructure, Program

__all__ = [
    "PairStructure",
    "Particles",
    "Program",
    "SiteDraws",
    "analyze_for_particles",
    "draw_particles",
    "log_weights",
]
