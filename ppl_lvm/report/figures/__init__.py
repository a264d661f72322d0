"""Figures: arrays to matplotlib."""
