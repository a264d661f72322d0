"""Contracts for users' models, guides and estimators."""

from ppl_lvm.testing.estimator_contract import check_estimator
from ppl_lvm.testing.guide_contract import check_guide
from ppl_lvm.testing.model_contract import check_model

__all__ = ["check_estimator", "check_guide", "check_model"]
