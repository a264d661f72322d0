"""Capture of training steps as tapes of tensor operations."""
