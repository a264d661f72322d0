"""Inference in chains of states: forward-backward and Kalman recursions."""
