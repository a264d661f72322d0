"""Bounds and gradient estimators, one file each."""
