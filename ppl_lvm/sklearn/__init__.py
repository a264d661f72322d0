"""Latent-variable models as scikit-learn estimators.

    from ppl_lvm.sklearn import GaussianMixture

    labels = GaussianMixture(n_components=3, n_init=10, random_state=0).fit_predict(X)

They take arrays and data frames, and work in `Pipeline`, `GridSearchCV`, `cross_val_score` and
`ColumnTransformer`, with `set_output`, `pickle` and `joblib`. The fit behind an estimator is its
attribute `run_`, a `ppl_lvm.Run`. `EXPECTED_FAILED_CHECKS` lists the checks of scikit-learn's
`check_estimator` that a class does not pass, with the reasons.
"""

from ppl_lvm.sklearn.base import LatentVariableEstimator
from ppl_lvm.sklearn.expected import EXPECTED_FAILED_CHECKS
from ppl_lvm.sklearn.factors import PPCA, FactorAnalysis
from ppl_lvm.sklearn.gradient import VAE, BayesianGaussianMixture, LatentVariableModel
from ppl_lvm.sklearn.hmm import GaussianHMM
from ppl_lvm.sklearn.mixtures import GaussianMixture, MixtureOfPPCA

__all__ = [
    "EXPECTED_FAILED_CHECKS",
    "PPCA",
    "VAE",
    "BayesianGaussianMixture",
    "FactorAnalysis",
    "GaussianHMM",
    "GaussianMixture",
    "LatentVariableEstimator",
    "LatentVariableModel",
    "MixtureOfPPCA",
]
