"""Pyro programs: models."""

from ppl_lvm.models.bayesian_gmm import BayesianGaussianMixture
from ppl_lvm.models.gmm import GaussianMixture
from ppl_lvm.models.vae import VAE

__all__ = ["VAE", "BayesianGaussianMixture", "GaussianMixture"]
