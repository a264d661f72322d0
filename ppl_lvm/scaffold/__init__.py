"""Files of a new model, its guide and tests."""
