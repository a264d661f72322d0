"""Posterior quantities of a fitted pair: predictions, evidence, densities, exports."""
