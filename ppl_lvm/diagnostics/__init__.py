"""Can this fit be trusted? One file per question; `diagnose` asks them all."""
