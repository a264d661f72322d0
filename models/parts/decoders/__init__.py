"""Decoders of auto-encoders, and the priors of their codes."""
