"""Training of model-guide pairs: steps, loop, restarts and checkpoints.

More than 12 modules, because each holds one concept of the loop and none is large.
"""
