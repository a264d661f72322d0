"""Fits as objects and as directories, and comparisons of them."""
