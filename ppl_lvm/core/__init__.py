"""Shared vocabulary: random state, storage, processes, console, call syntax.

More than 12 modules, because each is one small tool of all layers.
"""
