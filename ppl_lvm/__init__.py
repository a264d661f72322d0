"""Latent-variable models as Pyro programs: write them, train them, trust them."""
