"""Contracts that anybody's model, guide or estimator can be tested against."""

from ppl_lvm.testing.guide_contract import check_guide
from ppl_lvm.testing.model_contract import check_model

__all__ = ["check_guide", "check_model"]
