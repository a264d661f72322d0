"""Steps of expectation-maximization for Gaussian mixtures, and their densities."""
