"""`python -m ppl_lvm` is `ppl-lvm`."""

from ppl_lvm.cli import main

main()
