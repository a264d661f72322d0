"""Factor models with Gaussian noise: densities, regressions, and EM steps."""
