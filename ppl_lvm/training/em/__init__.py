"""Expectation-maximization: batch, online and Monte Carlo."""
