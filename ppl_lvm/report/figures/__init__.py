"""Figures: arrays to matplotlib.

There are more than 12 modules, one per kind of figure, so that a figure is found by its subject.
They depend only on `style` and on `arrays.save`.
"""
