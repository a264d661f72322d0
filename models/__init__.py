"""Latent-variable models as Pyro programs, one exported model per file.

Files of one model each are not grouped further: a model is found by its name. Shared parts are in
`parts/`.
"""

from ppl_lvm.core.arguments import check_constructors
from ppl_lvm.models.bayesian_gmm import BayesianGaussianMixture
from ppl_lvm.models.bernoulli_vae import BernoulliVAE
from ppl_lvm.models.conditional_vae import ConditionalVAE
from ppl_lvm.models.deep_markov import DeepMarkovModel
from ppl_lvm.models.diffusion import Diffusion
from ppl_lvm.models.factor_analysis import FactorAnalysis
from ppl_lvm.models.factor_model import FactorModel
from ppl_lvm.models.gaussian import Gaussian
from ppl_lvm.models.gm_vae import GaussianMixtureVAE
from ppl_lvm.models.gmm import GaussianMixture
from ppl_lvm.models.hierarchical_regression import HierarchicalRegression
from ppl_lvm.models.hierarchical_vae import HierarchicalVAE
from ppl_lvm.models.hmm import HiddenMarkovModel
from ppl_lvm.models.lda import LatentDirichletAllocation
from ppl_lvm.models.linear_state_space import LinearStateSpace
from ppl_lvm.models.mixture_of_ppca import MixtureOfPPCA
from ppl_lvm.models.normalizing_flow import NormalizingFlow
from ppl_lvm.models.ppca import PPCA
from ppl_lvm.models.prod_lda import ProdLDA
from ppl_lvm.models.random_effects import RandomEffects
from ppl_lvm.models.ss_vae import SemiSupervisedVAE
from ppl_lvm.models.vae import VAE

__all__ = [
    "PPCA",
    "VAE",
    "BayesianGaussianMixture",
    "BernoulliVAE",
    "ConditionalVAE",
    "DeepMarkovModel",
    "Diffusion",
    "FactorAnalysis",
    "FactorModel",
    "Gaussian",
    "GaussianMixture",
    "GaussianMixtureVAE",
    "HiddenMarkovModel",
    "HierarchicalRegression",
    "HierarchicalVAE",
    "LatentDirichletAllocation",
    "LinearStateSpace",
    "MixtureOfPPCA",
    "NormalizingFlow",
    "ProdLDA",
    "RandomEffects",
    "SemiSupervisedVAE",
]

check_constructors(__all__, globals())
