"""Programs of packages that are built on Pyro."""
