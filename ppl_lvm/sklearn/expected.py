"""Checks of scikit-learn's `check_estimator` that estimators fail.

Each has its reason.
"""

_WEIGHTS = "check_sample_weight_equivalence_on_dense_data"
_RANDOM_START = (
    "initial values are drawn from the rows, repeated rows draw others, and the fit may end in "
    "another local maximum (or the same with its components in another order), as in KMeans"
)
_RANDOM_STEPS = "gradient steps draw one random number per row, and repeated rows draw others"
_RANDOM_DRAWS = "score_samples averages draws of the guide, and each row of a call has its own"
_GRADIENT = {
    _WEIGHTS: _RANDOM_STEPS,
    "check_methods_sample_order_invariance": _RANDOM_DRAWS,
    "check_methods_subset_invariance": _RANDOM_DRAWS,
}
_ONE_COMPONENT = "the check sets n_components=1, and a sparse prior over one component is no model"
_ONE_COMPONENT_CHECKS = (
    "check_dont_overwrite_parameters",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_fit2d_1feature",
    "check_fit2d_predict1d",
)

# Class -> check -> reason. The mixtures pass with one component.
EXPECTED_FAILED_CHECKS: dict[str, dict[str, str]] = {
    "GaussianMixture": {_WEIGHTS: _RANDOM_START},
    "MixtureOfPPCA": {_WEIGHTS: _RANDOM_START},
    "PPCA": {},
    "FactorAnalysis": {},
    "GaussianHMM": {},
    "VAE": _GRADIENT,
    "BayesianGaussianMixture": _GRADIENT | dict.fromkeys(_ONE_COMPONENT_CHECKS, _ONE_COMPONENT),
    "LatentVariableModel": _GRADIENT,
}
