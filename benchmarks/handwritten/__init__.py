"""Estimators and training steps in plain torch.

More than twelve modules: programs, and one module per family of estimators (`twins.py`).
"""
