"""Posterior quantities of a fitted pair: predictions, evidence, densities, exports.

More than 12 modules, because each holds one quantity.
"""
