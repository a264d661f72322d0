"""Run the guide, replay the model: what K draws carry, per site, particle and datum."""

from ppl_lvm.particles.particles import Draw, Particles
from ppl_lvm.particles.sampling import draw_particles, log_weights, plan_pair
from ppl_lvm.particles.structure import Plan, Program

__all__ = ["Draw", "Particles", "Plan", "Program", "draw_particles", "log_weights", "plan_pair"]
