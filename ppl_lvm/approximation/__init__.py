"""Normal approximations of a posterior over global latents.

    unconstrained     the log density in unconstrained coordinates, with gradients
    paths             L-BFGS from random starts
    laplace           N(mode, inverse negative Hessian)
    normal, factored_normal, moments   normals with all covariances, or a few directions
    pathfinder        the best normal along each path
    batch_and_match   full covariance by score matching, in closed form
    dadvi             mean field with fixed draws, and linear-response covariances
    hamiltonian       parallel chains started from an approximation
    recording         recorded operations of the log density
    convergence       evidence of each parameter, from statistics of the chains
    improper          posteriors without a normalization
    importance        weights of a normal's draws
    automatic         all of these, and chains that test and correct the normal
    methods           the choice by name, and the verdict

The folder is flat: each method is one file of formulas, and the others are parts that they share.
"""

from ppl_lvm.approximation.methods import approximate
from ppl_lvm.approximation.result import Approximation

__all__ = ["Approximation", "approximate"]
