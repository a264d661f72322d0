"""Programs, what they declare, and pairs of model and guide."""
