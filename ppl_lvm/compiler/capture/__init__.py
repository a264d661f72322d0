"""Recording of a training step as a tape of tensor operations."""
