"""Figures: arrays to matplotlib.

More than 12 modules, one per kind of figure, so a reader finds the figure by its subject. The modules do not
depend on each other, except on `style` and `arrays.save`.
"""
