"""Run the guide, replay the model: what K draws carry, per site, particle and datum."""

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
