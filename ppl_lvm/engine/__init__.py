"""One SVI step: eager (plain Pyro), captured, compiled."""
