"""Pyro programs: latent-variable models."""
