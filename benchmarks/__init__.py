"""Benchmarks: one question per module, each with `run()`.

One module more than twelve: the harness that all of them share.
"""
