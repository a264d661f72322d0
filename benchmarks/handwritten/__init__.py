"""Estimators and training steps in plain torch, the yardstick for ours."""
