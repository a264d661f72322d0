"""Faults of a model and its guide, found before training, each with its remedy."""

from ppl_lvm.checks.issues import Issue, Issues, ObjectiveSupport
from ppl_lvm.checks.pair_check import check

__all__ = ["Issue", "Issues", "ObjectiveSupport", "check"]
