"""Figures: arrays to matplotlib.

One module per kind of figure, so a reader finds the figure by its subject. The modules do not
depend on each other, except on `style` and `arrays.save`.
"""
