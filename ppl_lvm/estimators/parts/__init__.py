"""Computations that several estimators share."""
