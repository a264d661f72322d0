"""Optimizers as update rules on flat vectors."""
