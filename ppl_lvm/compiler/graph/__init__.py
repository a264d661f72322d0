"""Recordings as `torch.fx` graphs."""
