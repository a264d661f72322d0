"""Posteriors with reference draws."""
