"""Can this fit be trusted? One file per question."""
