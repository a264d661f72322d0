"""Expectation-maximization: batch, online and Monte Carlo.

protocol               what a model implements
statistics             sums of the E-step over rows, restarts and processes
batch, online          an M-step per pass, per mini-batch
monte_carlo            E-step by nuts_sampler, M-step by complete_likelihood
posterior_guide        guide of a model fitted by Monte Carlo EM
"""
