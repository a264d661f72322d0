"""Benchmarks: one question per module, each with `run()`.

More than 12 modules, because each holds one benchmark.
"""
