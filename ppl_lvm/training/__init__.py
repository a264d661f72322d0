"""Training: from rows to steps, and what a run keeps on its way.

loop -> stepping (one step, by the engine)      together: restarts in one graph
rows: which rows a step sees                     resume: checkpoints
kl_weight, in_support: handlers around programs  nonfinite: who is at fault
trail: a thin record of parameters
"""
