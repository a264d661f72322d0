"""The functions that fit a model: SVI, EM, Monte Carlo EM, adversarial."""
