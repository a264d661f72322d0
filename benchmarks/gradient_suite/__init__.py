"""Programs with known gradients, and implementations to compare on them."""
