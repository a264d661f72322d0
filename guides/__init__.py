"""Pyro programs: guides, built from a model's signature."""
