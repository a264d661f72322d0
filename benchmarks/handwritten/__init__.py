"""Estimators and training steps in plain torch.

There are more than 12 modules: programs, and one module per family of estimators (`twins.py`).
"""
