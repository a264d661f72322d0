"""Faults of a pair before training, each with its remedy.

`pair_check.CHECKS` lists the checks in order. The folder has more than 12 modules, because each
check is one module.
"""

from ppl_lvm.checks.issues import Issue, Issues, ObjectiveSupport
from ppl_lvm.checks.pair_check import check, check_model

__all__ = ["Issue", "Issues", "ObjectiveSupport", "check", "check_model"]
