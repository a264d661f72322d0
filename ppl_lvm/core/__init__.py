"""Shared vocabulary: random state, storage, processes, console, call syntax."""
