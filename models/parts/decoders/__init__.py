"""Decoders of autoencoders, and the priors of their codes."""
