"""The functions that fit a model.

svi                fit: stochastic variational inference
em                 fit_em: expectation-maximization, batch or online
monte_carlo_em     fit_mcem: expectation-maximization by Markov chains
adversarial        fit_adversarial: a generator against a discriminator
session            rows, record and run directory, for all four
"""
