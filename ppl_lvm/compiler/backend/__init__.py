"""Compilation and execution of steps."""
