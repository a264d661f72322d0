"""The command line `ppl-lvm`."""

from ppl_lvm.cli.application import app, main

__all__ = ["app", "main"]
